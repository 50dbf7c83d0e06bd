use serde_json::json;

use super::*;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn arrays_look_like_the_references() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/a.json");
    let mut array = ArrayWriter::create(&path).unwrap();
    array.push(&json!({"prompt": "ü\u{7f}\u{1f}\n", "list": [1, []], "empty": {}})).unwrap();
    array.push(&json!("two")).unwrap();
    assert!(!path.exists(), "the array shows before it is whole");
    assert_eq!(array.finish().unwrap(), 2);
    assert_eq!(
        read(&path),
        "[\n  {\n    \"prompt\": \"ü\u{7f}\\u001f\\n\",\n    \"list\": [\n      1,\n      []\n    ],\n    \"empty\": {}\n  \
         },\n  \"two\"\n]"
    );
    let whole = json!([{"a": [{"b": null}]}, 2.5, true]);
    let mut array = ArrayWriter::create(&path).unwrap();
    whole.as_array().unwrap().iter().for_each(|element| array.push(element).unwrap());
    array.finish().unwrap();
    assert_eq!(read(&path), serde_json::to_string_pretty(&whole).unwrap());
}

#[test]
fn an_empty_array_and_lines_are_valid() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    assert_eq!(ArrayWriter::create(&path).unwrap().finish().unwrap(), 0);
    assert_eq!(read(&path), "[]");
    let mut lines = LinesWriter::create(&path).unwrap();
    lines.push(&json!({"a": "b\nc"})).unwrap();
    lines.push(&json!(2)).unwrap();
    assert_eq!(lines.finish().unwrap(), 2);
    assert_eq!(read(&path), "{\"a\":\"b\\nc\"}\n2\n");
}

#[test]
fn an_unfinished_writer_leaves_nothing_and_keeps_the_file_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    write_json(&path, &json!({"a": 1})).unwrap();
    let mut array = ArrayWriter::create(&path).unwrap();
    array.push(&1).unwrap();
    drop(array);
    assert_eq!(read(&path), "{\n  \"a\": 1\n}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn two_writers_of_one_file_do_not_meet_and_what_a_killed_one_left_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    let count = || fs::read_dir(folder.path()).unwrap().count();
    fs::write(folder.path().join("a.json.tmp"), "left by a killed writer, and longer than what follows").unwrap();
    let mut first = AtomicFile::create(&path).unwrap();
    let mut second = AtomicFile::create(&path).unwrap();
    let mut third = AtomicFile::create(&path).unwrap();
    first.write(b"first").unwrap();
    second.write(b"second").unwrap();
    third.write(b"third").unwrap();
    assert_eq!(count(), 3);
    second.finish().unwrap();
    assert_eq!(read(&path), "second");
    drop(third);
    first.finish().unwrap();
    assert_eq!((read(&path).as_str(), count()), ("first", 1));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_device_is_named_and_nothing_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.json");
    write_atomic(&path, b"before").unwrap();
    // Everything written to this device fails with "no space left".
    std::os::unix::fs::symlink("/dev/full", folder.path().join("a.json.tmp")).unwrap();
    let error = write_atomic(&path, &vec![b'x'; 1 << 20]).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }));
    let message = error.to_string();
    assert!(message.contains("a.json: no space left on the device") && message.contains("untouched"), "{message}");
    assert_eq!(read(&path), "before");
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real.json"), folder.path().join("link.json"));
    write_atomic(&real, b"old").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    write_atomic(&link, b"new").unwrap();
    assert_eq!(read(&real), "new");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(matches!(write_atomic(Path::new("/dev/null"), b"x"), Err(Error::Config(_))));
    assert!(matches!(write_atomic(folder.path(), b"x"), Err(Error::Config(_))));
}

#[test]
fn siblings_change_the_end_of_the_name_only() {
    assert_eq!(sibling(Path::new("a.json/pairs.json"), "_unused"), Path::new("a.json/pairs_unused.json"));
    assert_eq!(sibling(Path::new("pairs.v1.jsonl.gz"), "_quarantine"), Path::new("pairs.v1_quarantine.json"));
    assert_eq!(sibling(Path::new("pairs"), "_quarantine"), Path::new("pairs_quarantine.json"));
}

#[test]
fn one_file_is_known_under_all_its_names() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("a"), "").unwrap();
    std::fs::write(path("b"), "").unwrap();
    std::fs::hard_link(path("a"), path("hard")).unwrap();
    std::os::unix::fs::symlink(path("a"), path("soft")).unwrap();
    for name in ["a", "hard", "soft", "./a"] {
        assert!(same_file(&path("a"), &path(name)), "{name}");
    }
    assert!(!same_file(&path("a"), &path("b")));
    assert!(!same_file(&path("a"), &path("none")));
    assert!(same_file(&path("none"), &path("./none")));
    assert!(check_spared("--out", &path("b"), &[("--in", Some(&path("a"))), ("--gold", None)]).is_ok());
    check_all_spared(&[path("b")], &[("--in", path("a").as_path())]).unwrap();
    let error = check_all_spared(&[path("b"), path("soft")], &[("--in", path("a").as_path())]).unwrap_err().to_string();
    assert!(error.contains("--in") && error.contains("writes") && error.contains("soft"), "{error}");
    let error = check_spared("--out", &path("soft"), &[("--in", Some(&path("a")))]).unwrap_err().to_string();
    assert!(error.contains("--out") && error.contains("given by --in"), "{error}");
}
