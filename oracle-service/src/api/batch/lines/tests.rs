use shared::keyed_random::KeyedRandom;

use super::*;

fn key(n: u64) -> Key {
    (Key::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64) | Key::from(n)
}

fn words(key: Key) -> String {
    format!("The answer to {}.", text(key))
}

fn answered(key: Key) -> String {
    json!({
        "id": "batch_req_1", "custom_id": text(key),
        "response": {"status_code": 200, "request_id": "r", "body": {
            "id": "c", "object": "chat.completion", "created": 0, "model": "m-2026",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words(key)}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        }},
        "error": null,
    })
    .to_string()
}

fn failed(key: Key, status: u16, code: &str) -> String {
    let body = json!({"error": {"code": code, "message": "no"}});
    json!({"custom_id": text(key), "response": {"status_code": status, "body": body}, "error": null}).to_string()
}

fn expired(key: Key) -> String {
    let error = json!({"code": "batch_expired", "message": "This request could not be executed before it expired."});
    json!({"custom_id": text(key), "response": null, "error": error}).to_string()
}

fn sorter(n: u64) -> Sorter {
    Sorter::new((0..n).map(key).collect())
}

#[test]
fn a_line_goes_up_and_its_key_is_read_back() {
    let line = request(&text(key(3)), &json!({"model": "m", "messages": []}));
    assert!(line.ends_with("}\n"));
    assert_eq!(key_of_request(line.trim_end()), Some(key(3)));
    assert_eq!(key_of_request("{}"), None);
    for wrong in ["", "xyz", "0123", &"A".repeat(32), &"+".repeat(32), &format!("{}0", text(key(1)))] {
        assert_eq!(number(wrong), None, "{wrong}");
    }
}

#[test]
fn answers_are_matched_by_their_custom_id_in_any_order_and_from_either_file() {
    let mut sorter = sorter(6);
    for n in [4, 0, 5] {
        let (found, answer) = sorter.take(answered(key(n)).as_bytes(), 9).unwrap();
        assert_eq!((found, answer.text), (key(n), Some(words(key(n)))));
        assert_eq!((answer.model.as_str(), answer.tokens.prompt, answer.at_ms), ("m-2026", 7, 9));
    }
    for line in [failed(key(1), 400, "context_length_exceeded"), expired(key(2)), failed(key(0), 500, "")] {
        assert_eq!(sorter.take(line.as_bytes(), 9), None);
    }
    assert_eq!(sorter.answered(), 3);
    let left = sorter.left();
    let mut again = vec![key(2), key(3)];
    again.sort_unstable();
    assert_eq!(left.again, again, "the expired one and the one without a line");
    assert_eq!(left.refused.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(1)]);
    assert_eq!(left.stop, None);
}

#[test]
fn a_repeated_line_counts_once_and_an_answer_outweighs_a_failure() {
    let mut sorter = sorter(2);
    assert_eq!(sorter.take(failed(key(0), 500, "").as_bytes(), 0), None);
    assert!(sorter.take(answered(key(0)).as_bytes(), 0).is_some());
    assert_eq!(sorter.take(answered(key(0)).as_bytes(), 0), None);
    assert_eq!(sorter.take(answered(key(9)).as_bytes(), 0), None);
    assert_eq!(sorter.counts, Counts { broken: 0, foreign: 1, repeated: 1 });
    assert_eq!(sorter.left().again, [key(1)]);
}

#[test]
fn a_line_that_only_someone_can_mend_stops_the_job_and_keeps_its_request() {
    let mut sorter = sorter(1);
    sorter.take(failed(key(0), 429, "insufficient_quota").as_bytes(), 0);
    let left = sorter.left();
    assert_eq!(left.again, [key(0)]);
    assert!(left.stop.unwrap().contains("quota"));
}

#[test]
fn lines_do_not_depend_on_how_the_stream_is_cut() {
    let text = b"one\n\ntwo\r\n{\"three\": 3}\nlast";
    let whole: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    for size in 1..text.len() {
        let (mut splitter, mut lines) = (Splitter::default(), Vec::new());
        for chunk in text.chunks(size) {
            splitter.push(chunk, |line| lines.push(line.to_vec()));
        }
        splitter.finish(|line| lines.push(line.to_vec()));
        assert_eq!(lines, whole, "{size}");
    }
}

/// Spoils a line in one of the ways that files are spoilt in.
fn spoil(line: &str, random: &mut KeyedRandom) -> Vec<u8> {
    let mut bytes = line.as_bytes().to_vec();
    let at = random.below(bytes.len() as u64) as usize;
    match random.below(7) {
        0 => bytes.truncate(at),
        1 => bytes[at] = random.next_u64() as u8,
        2 => bytes[at] ^= 1 << random.below(8),
        3 => bytes.splice(at..at, (0..random.below(40)).map(|_| random.next_u64() as u8)).for_each(drop),
        4 => bytes = (0..random.below(200)).map(|_| random.next_u64() as u8).collect(),
        5 => {
            bytes = line.replace("200", ["\"200\"", "-1", "1e999", "99999999", "null"][random.below(5) as usize]).into()
        }
        _ => {
            let values = ["null", "[]", "{}", "0", "\"\"", "{\"choices\": []}", "[[[[[[["];
            let value = values[random.below(values.len() as u64) as usize];
            bytes = line.replacen("{\"id\":\"c\"", &format!("{value},\"x\":{{\"id\":\"c\""), 1).into_bytes();
        }
    }
    bytes
}

#[test]
fn among_spoilt_lines_no_good_line_is_lost_or_given_to_another_request() {
    for seed in 0..400 {
        let mut random = KeyedRandom::new(&[4, seed]);
        let requests = 1 + random.below(12);
        let mut lines: Vec<Vec<u8>> = (0..requests).map(|n| answered(key(n)).into_bytes()).collect();
        for _ in 0..random.below(30) {
            lines.push(spoil(&answered(key(random.below(requests + 3))), &mut random));
        }
        random.shuffle(&mut lines);
        let file = lines.join(&b'\n');
        let (mut sorter, mut splitter, mut found) = (sorter(requests), Splitter::default(), HashMap::new());
        for chunk in file.chunks(1 + random.below(300) as usize) {
            splitter.push(chunk, |line| found.extend(sorter.take(line, 0)));
        }
        splitter.finish(|line| found.extend(sorter.take(line, 0)));
        for n in 0..requests {
            let answer = found.remove(&key(n)).unwrap_or_else(|| panic!("seed {seed}: the line of {n} is lost"));
            for other in (0..requests + 3).filter(|other| *other != n) {
                assert_ne!(answer.text, Some(words(key(other))), "seed {seed}");
            }
        }
        assert!(found.is_empty(), "seed {seed}: answers to questions that nobody asked");
        assert_eq!(sorter.left(), Left::default());
    }
}
