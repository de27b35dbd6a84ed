//! Which of the reference's model classes a configuration names: the one place where a class is told from another.

use serde::{Deserialize, Serialize};

/// The reference's model classes. What differs between them is the [`Family`] and the [`HeadKind`]; classes that agree in
/// both (`*_base`, `*_ilm`, `rotary_it`) have the same parameters and differ in the reference only in what they return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelClass {
    /// `BaseRotaryTransformerILMModel`.
    RotaryBase,
    /// `RotaryTransformerILMModel`.
    RotaryIlm,
    /// `RotaryTransformerITModel`, the Insertion Transformer.
    RotaryIt,
    /// `RotaryTransformerILMModelWithClassification`.
    RotaryClassification,
    /// `RotaryTransformerILMModelWithStoppingClassification`.
    #[default]
    RotaryStopping,
    /// `RotaryTransformerILMModelWithLengthClassification`.
    RotaryLength,
    /// `BaseGPT2ILMModel`.
    Gpt2Base,
    /// `GPT2ILMModel`.
    Gpt2Ilm,
    /// `GPT2ILMModelWithClassification`.
    Gpt2Classification,
    /// `GPT2ILMModelWithStoppingClassification`.
    Gpt2Stopping,
    /// `GPT2ILMModelWithLengthClassification`.
    Gpt2Length,
}

/// How positions enter a model, and with it names, biases and initial values of its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Queries and keys are turned by their positions.
    Rotary,
    /// A learned vector of each position is added to the token's.
    Gpt2,
}

/// What the head on CLS tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// There is no head.
    None,
    /// Classes of the caller's choice, `model.num_classes` of them.
    Classification,
    /// Complete (0) or tokens missing (1).
    Stopping,
    /// How many tokens are missing, `0..C`.
    Length,
}

impl ModelClass {
    /// Every class.
    pub const ALL: [Self; 11] = [
        Self::RotaryBase,
        Self::RotaryIlm,
        Self::RotaryIt,
        Self::RotaryClassification,
        Self::RotaryStopping,
        Self::RotaryLength,
        Self::Gpt2Base,
        Self::Gpt2Ilm,
        Self::Gpt2Classification,
        Self::Gpt2Stopping,
        Self::Gpt2Length,
    ];

    /// Value of `model.class`, family, head, and the name of the Python class.
    fn facts(self) -> (&'static str, Family, HeadKind, &'static str) {
        use Family::{Gpt2, Rotary};
        use HeadKind::{Classification, Length, None, Stopping};
        match self {
            Self::RotaryBase => ("rotary_base", Rotary, None, "BaseRotaryTransformerILMModel"),
            Self::RotaryIlm => ("rotary_ilm", Rotary, None, "RotaryTransformerILMModel"),
            Self::RotaryIt => ("rotary_it", Rotary, None, "RotaryTransformerITModel"),
            Self::RotaryClassification => (
                "rotary_classification",
                Rotary,
                Classification,
                "RotaryTransformerILMModelWithClassification",
            ),
            Self::RotaryStopping => {
                ("rotary_stopping", Rotary, Stopping, "RotaryTransformerILMModelWithStoppingClassification")
            }
            Self::RotaryLength => {
                ("rotary_length", Rotary, Length, "RotaryTransformerILMModelWithLengthClassification")
            }
            Self::Gpt2Base => ("gpt2_base", Gpt2, None, "BaseGPT2ILMModel"),
            Self::Gpt2Ilm => ("gpt2_ilm", Gpt2, None, "GPT2ILMModel"),
            Self::Gpt2Classification => {
                ("gpt2_classification", Gpt2, Classification, "GPT2ILMModelWithClassification")
            }
            Self::Gpt2Stopping => ("gpt2_stopping", Gpt2, Stopping, "GPT2ILMModelWithStoppingClassification"),
            Self::Gpt2Length => ("gpt2_length", Gpt2, Length, "GPT2ILMModelWithLengthClassification"),
        }
    }

    /// The value of `model.class`.
    pub fn key(self) -> &'static str {
        self.facts().0
    }

    /// How positions enter.
    pub fn family(self) -> Family {
        self.facts().1
    }

    /// What the head on CLS tells apart.
    pub fn head(self) -> HeadKind {
        self.facts().2
    }

    /// Name of the reference's Python class.
    pub fn reference_name(self) -> &'static str {
        self.facts().3
    }

    /// Whether the layer norm before the output matrix is left out where the configuration does not say: the defaults of
    /// the reference's constructors.
    pub fn lacks_final_norm(self) -> bool {
        !matches!(self, Self::Gpt2Classification | Self::Gpt2Stopping)
    }
}
