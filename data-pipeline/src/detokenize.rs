//! Undoes the spaces that lm1b's tokenised style puts around punctuation, rule by rule, each over the last one's result.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

enum Rule {
    Text(&'static str, &'static str),
    Pattern(Regex, &'static str),
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let text = Rule::Text;
    // A word is what Python's \w matches: Unicode letters and numbers of every kind and the underscore, but no marks.
    let pattern = |pattern: &str, replacement| {
        let pattern = pattern.replace("WORD", r"[\p{L}\p{N}_]+").replace("END", r"(?<end>\n?)\z");
        Rule::Pattern(Regex::new(&pattern).expect("a fixed pattern that a test compiles"), replacement)
    };
    vec![
        text("http : / / ", "http://"),
        text("https : / / ", "https://"),
        pattern(" '(WORD)", "'${1}"),
        pattern(r" (WORD) \. ", " ${1}. "),
        pattern(r" (WORD) \.END", " ${1}.${end}"),
        text(" ? ", "? "),
        pattern(r" \?END", "?${end}"),
        text(" ! ", "! "),
        pattern(" !END", "!${end}"),
        text(" , ", ", "),
        text(" : ", ": "),
        text(" ; ", "; "),
        text(" / ", "/"),
        pattern(r#"" ([^"]+) ""#, r#""${1}""#),
        pattern(r"' ([^']+) '", "'${1}'"),
        pattern(r"\( ([^()]+) \)", "(${1})"),
        pattern(r"\[ ([^\[\]]+) \]", "[${1}]"),
        text("$ ", "$"),
        text("£ ", "£"),
    ]
});

/// The text with the spaces of lm1b's style taken out. `END` of a rule is the end of the text or before its final
/// newline.
pub fn detokenize_lm1b(text: &str) -> String {
    let mut text = Cow::Borrowed(text);
    for rule in RULES.iter() {
        let changed = match rule {
            Rule::Text(from, to) if text.contains(from) => Some(text.replace(from, to)),
            Rule::Text(..) => None,
            Rule::Pattern(pattern, replacement) => match pattern.replace_all(&text, *replacement) {
                Cow::Owned(changed) => Some(changed),
                Cow::Borrowed(_) => None,
            },
        };
        if let Some(changed) = changed {
            text = Cow::Owned(changed);
        }
    }
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::detokenize_lm1b;

    #[test]
    fn an_end_is_also_before_a_final_newline() {
        assert_eq!(detokenize_lm1b("so be it ."), "so be it.");
        assert_eq!(detokenize_lm1b("so be it .\n"), "so be it.\n");
        assert_eq!(detokenize_lm1b("really ?\n"), "really?\n");
        assert_eq!(detokenize_lm1b("no !\n\n"), "no !\n\n");
    }

    #[test]
    fn words_are_unicode_words() {
        assert_eq!(detokenize_lm1b("un café ."), "un café.");
        assert_eq!(detokenize_lm1b("about ½ . Then"), "about ½. Then");
        assert_eq!(detokenize_lm1b("a -- . b"), "a -- . b");
    }

    #[test]
    fn groups_may_span_lines_and_do_not_nest() {
        assert_eq!(detokenize_lm1b("\" one\ntwo \""), "\"one\ntwo\"");
        assert_eq!(detokenize_lm1b("[ a [ b ] c ]"), "[ a [b] c ]");
    }
}
