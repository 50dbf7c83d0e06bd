//! Which file says what, and what is said when one of them is wrong.

use serde_json::json;

use super::*;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/templates").join(name)
}

/// A folder with a golden tokenizer.json (ChatML's) and the given other files.
fn folder(files: &[(&str, String)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("chatml").join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

fn load(files: &[(&str, String)]) -> Result<TextFiles, TextError> {
    TextFiles::load(folder(files).path(), Date::default())
}

fn error(files: &[(&str, String)]) -> String {
    load(files).err().expect("must fail").to_string()
}

fn greeting(files: &TextFiles) -> String {
    files.template.as_ref().unwrap().render(&[], false).unwrap()
}

impl TextFiles {
    /// Returns the text of tokens, special ones written out.
    pub(in crate::text) fn raw_text(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, false).unwrap()
    }
}

#[test]
fn only_the_tokenizer_itself_must_be_there() {
    let files = load(&[]).unwrap();
    assert!(files.template.is_none() && files.bos.is_none() && files.eos.is_none() && files.stop.is_empty());
    let nowhere = tempfile::tempdir().unwrap();
    let missing = TextFiles::load(nowhere.path(), Date::default()).err().unwrap().to_string();
    assert!(missing.contains("tokenizer.json"), "{missing}");
}

#[test]
fn special_tokens_are_strings_or_objects_and_fall_back_to_the_map() {
    let config = json!({"bos_token": {"content": "<|im_start|>", "lstrip": false}, "pad_token": null});
    let map = json!({"bos_token": "<|im_end|>", "eos_token": {"content": "<|im_end|>"}});
    let files =
        load(&[("tokenizer_config.json", config.to_string()), ("special_tokens_map.json", map.to_string())]).unwrap();
    assert_eq!((files.bos, files.eos, files.pad), (Some(1), Some(2), None));
}

#[test]
fn stop_tokens_come_from_three_files_each_once() {
    let tokenizer = ("tokenizer_config.json", json!({"eos_token": "<|im_end|>"}).to_string());
    let model = ("config.json", json!({"eos_token_id": 0}).to_string());
    let generation = ("generation_config.json", json!({"eos_token_id": [2, 7]}).to_string());
    assert_eq!(load(&[tokenizer, model.clone(), generation.clone()]).unwrap().stop, [2, 7, 0]);
    let unnamed = load(&[model, generation]).unwrap();
    assert_eq!((unnamed.stop, unnamed.eos), (vec![2, 7, 0], Some(2)));
}

#[test]
fn template_file_wins_over_the_configuration() {
    let config = ("tokenizer_config.json", json!({"chat_template": "inside"}).to_string());
    assert_eq!(greeting(&load(std::slice::from_ref(&config)).unwrap()), "inside");
    let file = ("chat_template.jinja", "beside".to_owned());
    assert_eq!(greeting(&load(&[config, file]).unwrap()), "beside");
}

#[test]
fn named_templates_need_a_default_unless_there_is_one_only() {
    let config = |names: &[&str]| {
        let list: Vec<Value> =
            names.iter().map(|name| json!({"name": name, "template": format!("T-{name}")})).collect();
        [("tokenizer_config.json", json!({"chat_template": list}).to_string())]
    };
    assert_eq!(greeting(&load(&config(&["rag", "default"])).unwrap()), "T-default");
    assert_eq!(greeting(&load(&config(&["rag"])).unwrap()), "T-rag");
    let none = error(&config(&["rag", "tool_use"]));
    assert!(none.contains("rag") && none.contains("default"), "{none}");
}

#[test]
fn surrounding_special_tokens_are_read_off_the_tokenizer() {
    let plain = TextFiles::load(&golden("plain"), Date::default()).unwrap();
    assert_eq!((plain.leading, plain.trailing), (vec![0], vec![]));
    let chatml = TextFiles::load(&golden("chatml"), Date::default()).unwrap();
    assert_eq!((chatml.leading, chatml.trailing), (vec![], vec![]));
}

#[test]
fn offsets_cover_every_byte_although_the_tokenizer_trims_its_own() {
    let files = TextFiles::load(&golden("chatml"), Date::default()).unwrap();
    let text = "a  b \n\n<|im_end|>\n ü";
    let pieces = files.pieces(text).unwrap();
    let mut covered = 0;
    for piece in &pieces {
        assert!(piece.start <= covered && piece.end > piece.start, "{piece:?}");
        covered = covered.max(piece.end);
    }
    assert_eq!(covered, text.len());
}

#[test]
fn wrong_files_are_named_with_the_field() {
    for (name, content, words) in [
        ("tokenizer.json", "{\"version\": 1}".to_owned(), "tokenizer.json"),
        ("tokenizer.json", "[1, 2".to_owned(), "not a tokenizer definition"),
        ("tokenizer_config.json", "{".to_owned(), "not JSON"),
        ("tokenizer_config.json", "[]".to_owned(), "JSON object"),
        ("tokenizer_config.json", json!({"eos_token": 5}).to_string(), "eos_token"),
        ("tokenizer_config.json", json!({"eos_token": "<nowhere>"}).to_string(), "<nowhere>"),
        ("tokenizer_config.json", json!({"chat_template": 5}).to_string(), "chat_template"),
        ("config.json", json!({"eos_token_id": "two"}).to_string(), "eos_token_id"),
        ("generation_config.json", json!({"eos_token_id": [-1]}).to_string(), "generation_config.json"),
        ("chat_template.jinja", "{% if %}".to_owned(), "does not compile"),
    ] {
        let message = error(&[(name, content)]);
        assert!(message.contains(words) && message.contains(name), "{name}: {message}");
    }
    let folder = folder(&[]);
    std::fs::write(folder.path().join("chat_template.jinja"), [0x80, 0x81]).unwrap();
    let message = TextFiles::load(folder.path(), Date::default()).err().unwrap().to_string();
    assert!(message.contains("chat_template.jinja"), "{message}");
}
