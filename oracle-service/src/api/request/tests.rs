use super::*;

fn model() -> Model {
    Model { name: "m".into(), policy: "Be kind.".into(), completion_tokens_key: false }
}

#[test]
fn a_verdict_is_asked_as_decided() {
    let body = model().verdict("x", "y", Form::default()).body;
    assert_eq!(body["messages"][0], json!({"role": "system", "content": "Be kind."}));
    let user = body["messages"][1]["content"].as_str().unwrap();
    assert!(user.starts_with("Prompt: x\n\nResponse: y\n\n"), "{user}");
    assert!(user.contains("COMPLIANT or NON-COMPLIANT"));
    assert_eq!((&body["temperature"], &body["seed"], &body["max_tokens"]), (&json!(0.0), &json!(42), &json!(8)));
    let newer = Model { completion_tokens_key: true, ..model() }.verdict("x", "y", Form::default()).body;
    assert_eq!((newer.get("max_tokens"), &newer["max_completion_tokens"]), (None, &json!(8)));
}

#[test]
fn whatever_shapes_the_answer_changes_the_key() {
    let base = model().verdict("x", "y", Form::default());
    assert_eq!(base.key(), model().verdict("x", "y", Form::default()).key());
    for other in [
        model().verdict("x", "z", Form::default()),
        model().verdict("z", "y", Form::default()),
        Model { name: "n".into(), ..model() }.verdict("x", "y", Form::default()),
        Model { policy: "Be brief.".into(), ..model() }.verdict("x", "y", Form::default()),
        model().verdict("x", "y", Form::default()).again("Maybe"),
        model().correction("x", "y", 8, 0, None),
    ] {
        assert_ne!(other.key(), base.key());
    }
    assert_ne!(model().correction("x", "y", 8, 0, None).key(), model().correction("x", "y", 9, 0, None).key());
}

#[test]
fn questions_are_read_back() {
    let user = |request: Request| request.body["messages"][1]["content"].as_str().unwrap().to_owned();
    let text = user(model().verdict("a\n\nResponse: b", "c\n\nd", Form::default()));
    assert_eq!(asked(&text), Some(Asked::Verdict { prompt: "a\n\nResponse: b", response: "c\n\nd" }));
    let text = user(model().correction("p", "r", 5, 0, None));
    assert_eq!(asked(&text), Some(Asked::Correction { prompt: "p" }));
    assert_eq!(asked("Hello?"), None);
    assert_eq!(asked("Prompt: x"), None);
}

const SWAPPED: Form = Form { wording: Wording::Swapped, vote: 0, logprobs: false, day: None };

#[test]
fn the_first_votes_key_is_that_of_ledgers_before_there_were_votes() {
    let request = model().verdict("x", "y", Form::default());
    let text = json!({"endpoint": "chat.completions", "vote": 0, "body": request.body}).to_string();
    assert_eq!(request.key(), blake3::hash(text.as_bytes()).to_hex()[..32]);
}

#[test]
fn every_form_has_a_key_of_its_own() {
    let forms = [
        Form::default(),
        SWAPPED,
        Form { vote: 1, ..Form::default() },
        Form { vote: 2, ..Form::default() },
        Form { logprobs: true, ..Form::default() },
        Form { day: Some(20_000), ..Form::default() },
        Form { day: Some(20_001), ..Form::default() },
    ];
    let mut keys: Vec<String> = forms.iter().map(|form| model().verdict("x", "y", *form).key()).collect();
    keys.extend(forms.iter().map(|form| model().pair("x", ["y", "z"], *form).key()));
    keys.push(model().correction("x", "y", 8, 0, None).key());
    keys.push(model().correction("x", "y", 8, 1, None).key());
    keys.push(model().correction("x", "y", 8, 1, Some("z")).key());
    let all = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), all);
}

#[test]
fn votes_after_the_first_are_drawn_and_repeat() {
    let body = model().verdict("x", "y", Form { vote: 2, ..Form::default() }).body;
    assert_eq!((&body["temperature"], &body["seed"]), (&json!(0.7), &json!(44)));
    let body = model().verdict("x", "y", Form { logprobs: true, ..Form::default() }).body;
    assert_eq!(
        (&body["logprobs"], &body["top_logprobs"], &body["temperature"]),
        (&json!(true), &json!(5), &json!(0.0))
    );
}

#[test]
fn a_pair_is_asked_about_by_a_strict_schema_and_swapped_it_stands_the_other_way_round() {
    let user = |request: &Request| request.body["messages"][1]["content"].as_str().unwrap().to_owned();
    let plain = model().pair("p\n\nResponse A: q", ["r", "s"], Form::default());
    assert_eq!(asked(&user(&plain)), Some(Asked::Pair { prompt: "p\n\nResponse A: q", a: "r", b: "s" }));
    let schema = &plain.body["response_format"]["json_schema"];
    assert_eq!((&schema["strict"], &schema["schema"]["additionalProperties"]), (&json!(true), &json!(false)));
    let swapped = model().pair("p", ["r", "s"], SWAPPED);
    assert_eq!(asked(&user(&swapped)), Some(Asked::Pair { prompt: "p", a: "s", b: "r" }));
    let text = user(&model().verdict("p", "r", SWAPPED));
    assert!(text.ends_with("NON-COMPLIANT or COMPLIANT."), "{text}");
    assert_eq!(asked(&text), Some(Asked::Verdict { prompt: "p", response: "r" }));
    assert!(plain.again("?").body["messages"][3]["content"].as_str().unwrap().contains("JSON"));
}
