//! Greedy generation against transformers.

use super::*;
use crate::generate::cache::generate;
use crate::generate::sample::Sampling;

struct Row {
    prompt: Vec<i64>,
    expected: Vec<i64>,
}

fn rows(model: &str) -> (usize, Vec<Row>) {
    let golden = golden();
    let greedy = &golden["models"][model]["greedy"];
    let rows = greedy["rows"].as_array().unwrap();
    let rows = rows
        .iter()
        .map(|row| Row { prompt: integers(&row["prompt_tokens"]), expected: integers(&row["generated"]) })
        .collect();
    (greedy["new_tokens"].as_u64().unwrap() as usize, rows)
}

fn greedy(decoder: &Decoder, prompts: &[&[i64]], stop: &[i64], new_tokens: usize) -> Vec<(Vec<i64>, bool)> {
    let prompts: Vec<(u64, &[i64])> = prompts.iter().enumerate().map(|(i, p)| (i as u64, *p)).collect();
    let responses = generate(decoder, None, &prompts, stop, 2, new_tokens, &Sampling::greedy()).unwrap();
    responses.into_iter().map(|response| (response.tokens, response.finished)).collect()
}

#[test]
fn batched_greedy_tokens_are_those_of_transformers() {
    for model in ["tied", "untied"] {
        let (new_tokens, rows) = rows(model);
        let lengths: std::collections::BTreeSet<usize> = rows.iter().map(|row| row.prompt.len()).collect();
        assert!(lengths.len() > 1, "the golden prompts have different lengths");
        let prompts: Vec<&[i64]> = rows.iter().map(|row| row.prompt.as_slice()).collect();
        let decoder = decoder(model);
        let got = greedy(&decoder, &prompts, &[2], new_tokens);
        for (i, row) in rows.iter().enumerate() {
            assert_eq!(got[i].0, row.expected, "{model}, row {i}");
            assert_eq!(greedy(&decoder, &[prompts[i]], &[2], new_tokens)[0], got[i], "{model}, row {i} alone");
        }
    }
}

/// No golden row meets the model's own end token, so each row's tenth token is made a stop token in its turn: that row
/// ends there, without it, and the others go on undisturbed to where they meet it.
#[test]
fn a_stop_token_ends_its_row_only() {
    let (new_tokens, rows) = rows("tied");
    let decoder = decoder("tied");
    let prompts: Vec<&[i64]> = rows.iter().map(|row| row.prompt.as_slice()).collect();
    let mut ended_early = 0;
    for stop in rows.iter().map(|row| row.expected[9]) {
        let got = greedy(&decoder, &prompts, &[stop], new_tokens);
        for (row, (tokens, finished)) in rows.iter().zip(got) {
            let end = row.expected.iter().position(|&token| token == stop);
            assert_eq!(tokens, row.expected[..end.unwrap_or(new_tokens)]);
            assert_eq!(finished, end.is_some());
            ended_early += usize::from(end.is_some_and(|end| end < new_tokens));
        }
    }
    assert!(ended_early >= rows.len() && ended_early < rows.len() * rows.len(), "{ended_early}");
}
