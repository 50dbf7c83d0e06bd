use super::super::data_sets::DataSets;
use super::super::tokenizer::{SPECIAL_TOKENS, config_json, tokenizer_json, vocabulary};
use super::*;
use tokenizers::Tokenizer;

fn tokenizer() -> Tokenizer {
    tokenizer_json().to_string().parse().unwrap()
}

#[test]
fn the_vocabulary_has_no_word_twice_and_starts_with_the_special_tokens() {
    let words = vocabulary();
    assert_eq!(words[..5], SPECIAL_TOKENS);
    let distinct: std::collections::HashSet<_> = words.iter().collect();
    assert_eq!(distinct.len(), words.len());
    assert_eq!(config_json()["vocab_size"], words.len());
    assert_eq!(tokenizer().get_vocab_size(true), words.len());
}

#[test]
fn every_text_of_the_world_comes_back_from_its_tokens() {
    let tokenizer = tokenizer();
    let sets = DataSets::of(&World::new(9));
    let corpus = sets.corpus.iter().flat_map(|item| [&item.prompt, &item.chosen]);
    let pairs = sets.pairs.iter().flat_map(|pair| [&pair.prompt, &pair.chosen, &pair.rejected]);
    let test = sets.test.iter().map(|prompt| &prompt.prompt);
    for text in corpus.chain(pairs).chain(test) {
        let encoding = tokenizer.encode(text.as_str(), true).unwrap();
        assert_eq!(encoding.len(), text.split(' ').count(), "{text}");
        assert_eq!(&tokenizer.decode(encoding.get_ids(), true).unwrap(), text);
    }
}

#[test]
fn a_rendered_conversation_is_one_token_a_word() {
    let rendered = "<s> <user> how do i bake my bread ? </s> <asst> good question . </s>";
    let encoding = tokenizer().encode(rendered, false).unwrap();
    assert_eq!(encoding.get_tokens(), rendered.split(' ').collect::<Vec<_>>());
    assert_eq!(encoding.get_ids()[..3], [1, 2, encoding.get_ids()[2]]);
    assert_eq!(encoding.get_ids().last(), Some(&4));
    assert_eq!(tokenizer().encode(rendered, true).unwrap().get_ids(), encoding.get_ids());
}

#[test]
fn a_word_from_outside_the_world_is_an_error() {
    assert!(tokenizer().encode("how do i bake my piano ?", true).is_err());
}

#[test]
fn sequences_are_as_short_as_the_recipe_says() {
    let sets = DataSets::of(&World::new(9));
    let longest = sets.corpus.iter().map(|item| item.chosen.split(' ').count() + 1).max().unwrap();
    assert!(longest <= recipe::MAX_RESPONSE_TOKENS, "{longest}");
    let whole =
        |item: &super::super::data_sets::Item| item.prompt.split(' ').count() + item.chosen.split(' ').count() + 5;
    assert!(sets.corpus.iter().map(whole).max().unwrap() < 96);
}
