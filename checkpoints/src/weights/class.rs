//! The reference's model classes: two families of backbones, four kinds of heads.

/// The backbone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Rotary positions; `embed_tokens`, `encoder`, `output_layer`.
    Rotary,
    /// Learned absolute positions; `transformer`, `lm_head`.
    Gpt2,
}

/// What reads the CLS position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Nothing.
    None,
    /// Any number of classes, named by `num_classes`.
    Classes,
    /// Two classes: go on or stop.
    Stopping,
    /// One class per number of missing tokens: `num_classes`, or else `max_length`.
    Length,
}

/// A class of the reference that can be constructed from a `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "family and head make up the name; see `name`, `family` and `head`")]
pub enum ReferenceClass {
    RotaryBase,
    RotaryIt,
    RotaryIlm,
    RotaryClassification,
    RotaryStopping,
    RotaryLength,
    Gpt2Base,
    Gpt2Ilm,
    Gpt2Classification,
    Gpt2Stopping,
    Gpt2Length,
}

/// The module of the reference in which all of them are.
const MODULE: &str = "ilm.model_ilm";

impl ReferenceClass {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::RotaryBase,
        Self::RotaryIt,
        Self::RotaryIlm,
        Self::RotaryClassification,
        Self::RotaryStopping,
        Self::RotaryLength,
        Self::Gpt2Base,
        Self::Gpt2Ilm,
        Self::Gpt2Classification,
        Self::Gpt2Stopping,
        Self::Gpt2Length,
    ];

    /// The class of a family with that head, as one would train it.
    pub fn new(family: Family, head: Head) -> Self {
        match (family, head) {
            (Family::Rotary, Head::None) => Self::RotaryIlm,
            (Family::Rotary, Head::Classes) => Self::RotaryClassification,
            (Family::Rotary, Head::Stopping) => Self::RotaryStopping,
            (Family::Rotary, Head::Length) => Self::RotaryLength,
            (Family::Gpt2, Head::None) => Self::Gpt2Ilm,
            (Family::Gpt2, Head::Classes) => Self::Gpt2Classification,
            (Family::Gpt2, Head::Stopping) => Self::Gpt2Stopping,
            (Family::Gpt2, Head::Length) => Self::Gpt2Length,
        }
    }

    /// The Python class's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::RotaryBase => "BaseRotaryTransformerILMModel",
            Self::RotaryIt => "RotaryTransformerITModel",
            Self::RotaryIlm => "RotaryTransformerILMModel",
            Self::RotaryClassification => "RotaryTransformerILMModelWithClassification",
            Self::RotaryStopping => "RotaryTransformerILMModelWithStoppingClassification",
            Self::RotaryLength => "RotaryTransformerILMModelWithLengthClassification",
            Self::Gpt2Base => "BaseGPT2ILMModel",
            Self::Gpt2Ilm => "GPT2ILMModel",
            Self::Gpt2Classification => "GPT2ILMModelWithClassification",
            Self::Gpt2Stopping => "GPT2ILMModelWithStoppingClassification",
            Self::Gpt2Length => "GPT2ILMModelWithLengthClassification",
        }
    }

    /// The dotted path that a `config.json` may hold as `_target_`.
    pub fn target(self) -> String {
        format!("{MODULE}.{}", self.name())
    }

    /// The class of a `_target_`, whatever its module: it has moved between versions.
    pub fn from_target(target: &str) -> Option<Self> {
        let name = target.rsplit('.').next()?;
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Its backbone.
    pub fn family(self) -> Family {
        match self {
            Self::RotaryBase
            | Self::RotaryIt
            | Self::RotaryIlm
            | Self::RotaryClassification
            | Self::RotaryStopping
            | Self::RotaryLength => Family::Rotary,
            Self::Gpt2Base
            | Self::Gpt2Ilm
            | Self::Gpt2Classification
            | Self::Gpt2Stopping
            | Self::Gpt2Length => Family::Gpt2,
        }
    }

    /// Its head.
    pub fn head(self) -> Head {
        match self {
            Self::RotaryBase | Self::RotaryIt | Self::RotaryIlm | Self::Gpt2Base | Self::Gpt2Ilm => {
                Head::None
            }
            Self::RotaryClassification | Self::Gpt2Classification => Head::Classes,
            Self::RotaryStopping | Self::Gpt2Stopping => Head::Stopping,
            Self::RotaryLength | Self::Gpt2Length => Head::Length,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_found_by_its_name_in_any_module() {
        for class in ReferenceClass::ALL {
            assert_eq!(ReferenceClass::from_target(&class.target()), Some(class));
            assert_eq!(ReferenceClass::from_target(&format!("xlm.lm.ilm.{}", class.name())), Some(class));
            assert_eq!(ReferenceClass::from_target(class.name()), Some(class));
            let made = ReferenceClass::new(class.family(), class.head());
            assert_eq!((made.family(), made.head()), (class.family(), class.head()));
        }
        assert_eq!(ReferenceClass::from_target("ilm.model_ilm.Other"), None);
        assert_eq!(ReferenceClass::from_target(""), None);
    }
}
