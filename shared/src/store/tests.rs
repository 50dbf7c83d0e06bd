use super::*;

fn put(store: &Store, key: &str, value: u64) {
    store.commit_blocking(vec![Change::put("t", key, &value)]).unwrap();
}

fn all(store: &Store) -> Vec<(String, u64)> {
    store.scan("t").unwrap()
}

fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "b", 2);
    put(&store, "a", 1);
    store
        .commit_blocking(vec![Change::remove("t", "b"), Change::put("t", "c", &3), Change::put("u", "a", &9)])
        .unwrap();
    assert_eq!(store.get::<u64>("t", "b").unwrap(), None);
    assert_eq!(all(&store), pairs(&[("a", 1), ("c", 3)]));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(all(&store), pairs(&[("a", 1), ("c", 3)]));
    assert_eq!(store.get::<u64>("u", "a").unwrap(), Some(9));
    assert!(store.get::<String>("u", "a").unwrap_err().to_string().contains("u/a"));
}

#[test]
fn a_torn_last_line_was_never_told_and_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    put(&Store::open(dir.path()).unwrap(), "a", 1);
    let log = dir.path().join("log");
    let whole = std::fs::read(&log).unwrap();
    for torn in [&b"0123"[..], b"0123456789abcdef {\"n\":2,\"c\":[]}", b"0123456789abcdef rubbish\n"] {
        std::fs::write(&log, [&whole, torn].concat()).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(all(&store), pairs(&[("a", 1)]));
        assert_eq!(std::fs::read(&log).unwrap(), whole);
    }
    let store = Store::open(dir.path()).unwrap();
    put(&store, "b", 2);
    drop(store);
    assert_eq!(all(&Store::open(dir.path()).unwrap()), pairs(&[("a", 1), ("b", 2)]));
}

#[test]
fn a_line_damaged_inside_is_named_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for n in 0..3 {
        put(&store, "a", n);
    }
    drop(store);
    let log = dir.path().join("log");
    let mut bytes = std::fs::read(&log).unwrap();
    let second = bytes.iter().position(|&b| b == b'\n').unwrap() + 30;
    bytes[second] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    // An index that is up to date has no need of the old line; one made anew has.
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("commit 2 is damaged"), "{error}");
    assert_eq!(std::fs::read(&log).unwrap(), bytes);
}

#[test]
fn the_index_is_made_anew_where_it_is_lost_damaged_or_of_another_log() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", 1);
    put(&store, "b", 2);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    assert_eq!(all(&Store::open(dir.path()).unwrap()), pairs(&[("a", 1), ("b", 2)]));

    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    std::fs::write(dir.path().join("index"), "no folder").unwrap();
    assert_eq!(all(&Store::open(dir.path()).unwrap()), pairs(&[("a", 1), ("b", 2)]));
    assert!(dir.path().join("index.broken-1").exists());

    // A log restored from a backup is shorter than what the index holds.
    let log = dir.path().join("log");
    let bytes = std::fs::read(&log).unwrap();
    let first = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
    std::fs::write(&log, &bytes[..first]).unwrap();
    assert_eq!(all(&Store::open(dir.path()).unwrap()), pairs(&[("a", 1)]));
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("in use by") && error.contains("another state folder"), "{error}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[tokio::test]
async fn commits_of_many_callers_are_all_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let commits = (0..200u64).map(|n| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(vec![Change::put("t", format!("{n:03}"), &n)]).await })
    });
    for commit in commits.collect::<Vec<_>>() {
        commit.await.unwrap().unwrap();
    }
    drop(store);
    assert_eq!(all(&Store::open(dir.path()).unwrap()).len(), 200);
}
