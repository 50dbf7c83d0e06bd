//! English phrases that refuse or answer nothing, and how a text is cut into words and sentences to find them.

/// Phrases before what is said: they are skipped, one after the other, at the start of a sentence.
const LEADS: [&str; 26] = [
    "i'm sorry",
    "i am sorry",
    "i'm so sorry",
    "i'm very sorry",
    "i'm really sorry",
    "sorry",
    "i apologize",
    "i apologise",
    "my apologies",
    "apologies",
    "unfortunately",
    "i'm afraid",
    "i am afraid",
    "as an ai language model",
    "as an ai assistant",
    "as an ai model",
    "as an ai",
    "as a language model",
    "as an assistant",
    "thank you for asking",
    "thanks for asking",
    "but",
    "that",
    "no",
    "well",
    "hmm",
];

/// Openings that refuse whatever follows.
const REFUSALS: [&str; 15] = [
    "i must decline",
    "i have to decline",
    "i respectfully decline",
    "i'd rather not",
    "i would rather not",
    "i prefer not to",
    "i'd prefer not to",
    "i refuse to",
    "i'm not comfortable",
    "i am not comfortable",
    "i don't feel comfortable",
    "i do not feel comfortable",
    "i don't want to talk about",
    "i don't want to answer",
    "no comment",
];

/// Openings that refuse where one of [`REFUSED`] follows.
const NEGATIONS: [&str; 18] = [
    "i can't",
    "i cannot",
    "i can not",
    "i won't",
    "i will not",
    "i'm not able to",
    "i am not able to",
    "i'm unable to",
    "i am unable to",
    "i'm not going to",
    "i am not going to",
    "i'm not allowed to",
    "i am not allowed to",
    "i don't think i can",
    "i do not think i can",
    "we can't",
    "we cannot",
    "i shouldn't",
];

/// What is refused. "I can't help but wonder" and "I can't give up" are no refusals.
const REFUSED: [&str; 32] = [
    "help you",
    "help with",
    "help in",
    "help there",
    "assist",
    "answer",
    "provide",
    "offer",
    "share",
    "discuss",
    "comment",
    "comply",
    "respond",
    "support",
    "fulfill",
    "fulfil",
    "engage",
    "advise",
    "continue",
    "do that",
    "do this",
    "do it",
    "do so",
    "talk about",
    "give you",
    "give any",
    "give advice",
    "give medical",
    "give legal",
    "give financial",
    "tell you how",
    "tell you what",
];

/// Sentences that answer nothing by themselves, after [`LEADS`].
const NON_ANSWERS: [&str; 34] = [
    "i don't know",
    "i do not know",
    "i don't know the answer",
    "i don't know anything about that",
    "i really don't know",
    "i'm not sure",
    "i am not sure",
    "i have no idea",
    "no idea",
    "it depends",
    "that depends",
    "i have no opinion",
    "i have no opinion on that",
    "i have no opinion on this",
    "i don't have an opinion",
    "i don't have an opinion on that",
    "i don't have an opinion on this",
    "i don't have personal opinions",
    "i don't have opinions",
    "let's talk about something else",
    "let us talk about something else",
    "can we talk about something else",
    "let's change the subject",
    "can we change the subject",
    "next question",
    "good question",
    "that's a good question",
    "that is a good question",
    "that's a great question",
    "that's an interesting question",
    "not applicable",
    "n a",
    "please consult a professional",
    "please ask someone else",
];

/// Sentences that go with anything.
const COURTESIES: [&str; 8] = [
    "is there anything else i can help you with",
    "is there something else i can help you with",
    "can i help you with anything else",
    "let me know if you have any other questions",
    "please let me know if you have any other questions",
    "thank you",
    "thanks",
    "have a nice day",
];

/// Cuts a text into words: runs of letters and digits in lower case, an apostrophe within them kept (a typographic one as
/// `'`). A sign of a script without spaces is a word by itself.
pub fn words(text: &str) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut end = |word: &mut String| {
        let whole = word.trim_matches('\'');
        if !whole.is_empty() {
            words.push(whole.to_owned());
        }
        word.clear();
    };
    for letter in text.chars() {
        if is_unspaced(letter) {
            end(&mut word);
            word.push(letter);
            end(&mut word);
        } else if letter.is_alphanumeric() {
            word.extend(letter.to_lowercase());
        } else if matches!(letter, '\'' | '’') {
            word.push('\'');
        } else {
            end(&mut word);
        }
    }
    end(&mut word);
    words
}

/// Chinese and Japanese signs, which stand without spaces between words.
fn is_unspaced(letter: char) -> bool {
    matches!(letter, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}')
}

/// Cuts a text into the words of its sentences; sentences without words are left out.
pub fn sentences(text: &str) -> Vec<Vec<String>> {
    let ends = ['.', '!', '?', '\n', '。', '！', '？', ';', '…'];
    text.split(ends).map(words).filter(|words| !words.is_empty()).collect()
}

/// Returns the first sentence that is more than phrases before it, without them.
pub fn first_sentence(sentences: &[Vec<String>]) -> Option<&[String]> {
    sentences.iter().map(|sentence| after_leads(sentence)).find(|rest| !rest.is_empty())
}

/// Returns whether a sentence without its leads refuses.
pub fn is_refusal(sentence: &[String]) -> bool {
    let refuses = |negation: &str| {
        let Some(rest) = after(sentence, negation) else { return false };
        *rest == ["help"] || REFUSED.iter().any(|what| after(rest, what).is_some())
    };
    REFUSALS.iter().any(|opening| after(sentence, opening).is_some())
        || NEGATIONS.iter().any(|negation| refuses(negation))
}

/// Returns whether a sentence answers nothing: a refusal, a non-answer, a courtesy, or leads alone.
pub fn is_non_answer(sentence: &[String]) -> bool {
    let rest = after_leads(sentence);
    let is_one_of =
        |phrases: &[&str]| phrases.iter().any(|phrase| after(rest, phrase).is_some_and(<[String]>::is_empty));
    let is_an_answer_by_itself = rest.is_empty() && sentence.iter().any(|word| word == "no");
    !is_an_answer_by_itself
        && (rest.is_empty() || is_refusal(rest) || is_one_of(&NON_ANSWERS) || is_one_of(&COURTESIES))
}

fn after_leads(mut sentence: &[String]) -> &[String] {
    while let Some(rest) = LEADS.iter().find_map(|lead| after(sentence, lead)) {
        sentence = rest;
    }
    sentence
}

/// Returns the words after a phrase at the start of a sentence.
fn after<'s>(sentence: &'s [String], phrase: &str) -> Option<&'s [String]> {
    let mut rest = sentence;
    for word in phrase.split(' ') {
        let (first, others) = rest.split_first()?;
        if first != word {
            return None;
        }
        rest = others;
    }
    Some(rest)
}
