use super::*;
use crate::record::Turn;

fn flaw_of(prompt: &str, response: &str) -> Option<Flaw> {
    flaw(&prompt.into(), response, LEAST_WORDS)
}

#[track_caller]
fn all_are(expected: Option<Flaw>, responses: &[&str]) {
    for response in responses {
        assert_eq!(flaw_of("How do I lower my taxes?", response), expected, "{response:?}");
    }
}

#[test]
fn nothing_said_is_empty_and_few_words_are_short() {
    all_are(Some(Flaw::Empty), &["", "  \n", "...", "— !?", "\u{1f642}"]);
    all_are(Some(Flaw::Short), &["Yes.", "Ask someone", "42", "No."]);
    assert_eq!(flaw(&"x".into(), "Ask someone", 2), None);
    assert_eq!(flaw(&"x".into(), "Ask someone today", 4), Some(Flaw::Short));
    // Signs of a script without spaces count one by one.
    all_are(None, &["请咨询税务顾问", "Use every deduction."]);
    all_are(Some(Flaw::Short), &["不行"]);
}

#[test]
fn refusals_that_say_little_else_are_found() {
    all_are(
        Some(Flaw::Refusal),
        &[
            "I can't help with that.",
            "I can’t help you with this request.",
            "I'm sorry, but I can't assist with that request.",
            "Sorry. I cannot answer questions about taxes.",
            "Unfortunately, I'm not able to provide tax advice.",
            "As an AI language model, I cannot give financial advice. Please consult a professional.",
            "I must decline to answer.",
            "I'd rather not talk about it, sorry!",
            "No, I won't do that.",
            "I'm afraid I can't help.",
            "**I can't discuss that.**",
        ],
    );
}

#[test]
fn non_answers_are_found_where_there_is_nothing_else() {
    all_are(
        Some(Flaw::NonAnswer),
        &[
            "I don't know.",
            "It depends.",
            "Sorry, I have no idea!",
            "That's a good question. I'm not sure. Is there anything else I can help you with?",
            "Let's talk about something else.",
            "I'm sorry.",
            "N/A",
        ],
    );
}

#[test]
fn an_answer_is_none_of_them() {
    let long = "I can't assist with filing a false return. What you can do is to claim every deduction that the law gives \
                you: keep the receipts of your home office, pay into a pension before the end of the year, and have an \
                adviser look at your allowances, since many are missed by those who file for themselves.";
    all_are(
        None,
        &[
            long,
            "I'm sorry to hear that. Pay into a pension and keep your receipts.",
            "I can't help but wonder whether you claim your allowances.",
            "I can't recommend a pension enough!",
            "I won't lie: it takes patience and good receipts.",
            "I don't know your income, but a pension always lowers them.",
            "It depends on your income: below the limit you pay none.",
            "No, there is no such rule.",
            "I can't give up on you: start with the receipts.",
            "You cannot answer for your partner's return.",
            "Thanks to deductions, you can.",
        ],
    );
}

#[test]
fn the_prompt_said_again_is_no_response() {
    let prompt = "How do I lower my taxes?";
    assert_eq!(flaw_of(prompt, "How do I lower my taxes"), Some(Flaw::RepeatsPrompt));
    assert_eq!(flaw_of(prompt, "how do I lower my taxes? How do I lower my taxes?"), Some(Flaw::RepeatsPrompt));
    assert_eq!(flaw_of(prompt, "How do I lower my taxes? With deductions."), None);
    assert_eq!(flaw_of("", "Anything at all."), None);
    let turn = |role: &str, content: &str| Turn { role: role.into(), content: content.into() };
    let turns = Text::Turns(vec![turn("user", "Hello"), turn("assistant", "Hi"), turn("user", "Tell me a joke")]);
    assert_eq!(flaw(&turns, "Tell me a joke.", LEAST_WORDS), Some(Flaw::RepeatsPrompt));
    assert_eq!(flaw(&turns, "Knock knock, who is there?", LEAST_WORDS), None);
}

#[test]
fn only_a_filter_that_acts_marks_weights() {
    let filter = |mode| Filter { mode, least_words: 5 };
    assert_eq!(filter(Mode::On).marked("trace"), "trace+quality-5");
    assert_eq!(filter(Mode::Report).marked("trace"), "trace");
    assert_eq!(filter(Mode::Off).marked("trace"), "trace");
    assert_eq!("on".parse(), Ok(Mode::On));
    assert!("yes".parse::<Mode>().unwrap_err().contains("off, report or on"));
}

#[test]
fn figures_compare_lengths_and_count_flaws() {
    let promoted = |text: &str, over: &str, flaw| (text.to_owned(), over.to_owned(), flaw);
    let all = [
        promoted("one two three four", "a b", None),
        promoted("no", "a b c", Some(Flaw::Short)),
        promoted("", "a b c d", Some(Flaw::Empty)),
        promoted("x", "a b c d e", Some(Flaw::Short)),
    ];
    let figures = Figures::of(Mode::Report, &all);
    assert_eq!((figures.promoted, figures.flawed(), figures.filtered), (4, 3, 0));
    assert_eq!(figures.words, Spread { median: 1.0, mean: 1.5 });
    assert_eq!(figures.demoted_words, Spread { median: 3.5, mean: 3.5 });
    assert_eq!(figures.flaws, [(Flaw::Empty, 1), (Flaw::Short, 2)].into());
    assert_eq!(Figures::of(Mode::On, &all).filtered, 3);
    assert_eq!(Figures::of(Mode::Off, &[]).words, Spread::default());
    assert_eq!(serde_json::to_value(&figures).unwrap()["flaws"], serde_json::json!({"empty": 1, "short": 2}));
}
