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

/// Damages a byte of the log's line number `line` (from 0), near its end.
fn damage(folder: &Path, line: usize) {
    let log = folder.join("log");
    let mut bytes = std::fs::read(&log).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    bytes[ends[line] - 4] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
}

#[test]
fn a_damaged_log_is_set_aside_and_its_whole_commits_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for n in 0..5 {
        put(&store, &format!("k{n}"), n);
    }
    drop(store);
    damage(dir.path(), 1);
    damage(dir.path(), 3);
    let damaged = std::fs::read(dir.path().join("log")).unwrap();
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    assert!(Store::open(dir.path()).unwrap_err().to_string().contains("commit 2 is damaged"));
    let (store, salvaged) = Store::open_salvaging(dir.path()).unwrap();
    let salvaged = salvaged.unwrap();
    assert_eq!(all(&store), pairs(&[("k0", 0), ("k2", 2), ("k4", 4)]));
    assert_eq!(store.count("t").unwrap(), 3);
    assert_eq!(salvaged.kept, 3);
    let lost: Vec<_> = salvaged.lost.iter().map(|lost| (lost.line, lost.commits.clone(), lost.keys.clone())).collect();
    let key = |key: &str| vec![("t".to_owned(), key.to_owned())];
    assert_eq!(lost, [(2, 2..=2, key("k1")), (4, 4..=4, key("k3"))]);
    assert_eq!(std::fs::read(salvaged.set_aside.join("log")).unwrap(), damaged);
    put(&store, "k5", 5);
    drop(store);
    let (store, salvaged) = Store::open_salvaging(dir.path()).unwrap();
    assert!(salvaged.is_none());
    assert_eq!(all(&store).len(), 4);
}

#[test]
fn damage_under_an_index_that_is_up_to_date_is_found_where_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for n in 0..3 {
        put(&store, &format!("k{n}"), n);
    }
    drop(store);
    damage(dir.path(), 1);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.find::<u64>("t", "k2").unwrap(), Found::Value(2));
    assert_eq!(store.find::<u64>("t", "k9").unwrap(), Found::Nothing);
    assert!(matches!(store.find::<u64>("t", "k1").unwrap(), Found::Damaged(problem) if problem.contains("t/k1")));
    assert!(store.get::<u64>("t", "k1").unwrap_err().to_string().contains("t/k1 is damaged"));
}

#[test]
fn counts_and_order_hold_across_what_is_in_memory_and_what_is_in_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let key = |n: u64| format!("{:05}", n * 7919 % 40_000);
    let change = |n: u64| vec![Change::put("t", key(n), &n), Change::put("intents", key(n), &n)];
    let commit = |changes: Vec<Change>| {
        changes.chunks(100).for_each(|changes| store.commit_blocking(changes.to_vec()).unwrap());
    };
    commit((0..10_000).flat_map(change).collect());
    commit((0..10_000).map(|n| Change::remove("intents", key(n))).collect());
    commit((9_000..20_000).flat_map(change).collect());
    commit((0..100).map(|n| Change::remove("t", key(n))).collect());
    let check = |store: &Store| {
        assert_eq!((store.count("t").unwrap(), store.count("intents").unwrap()), (19_900, 11_000));
        let all = all(store);
        assert_eq!(all.len(), 19_900);
        assert!(all.is_sorted() && all.iter().all(|(name, n)| *name == key(*n) && *n >= 100));
    };
    check(&store);
    drop(store);
    check(&Store::open(dir.path()).unwrap());
}

#[test]
fn an_index_that_missed_its_end_is_brought_up_and_counts_no_key_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", 1);
    put(&store, "b", 2);
    drop(store);
    // A death while changes were brought in: the key is there, but not what says so.
    let copy = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "c", 3);
    let log = std::fs::read(dir.path().join("log")).unwrap();
    drop(store);
    let sled = sled::open(dir.path().join("index")).unwrap();
    sled.remove(b"\0state").unwrap();
    sled.flush().unwrap();
    drop(sled);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.count("t").unwrap(), 3);
    drop(store);
    std::fs::write(copy.path().join("log"), log).unwrap();
    assert_eq!(Store::open(copy.path()).unwrap().count("t").unwrap(), 3);
}

#[test]
fn the_log_is_read_on_from_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", 1);
    let mut seen = Vec::new();
    let mut since = |byte| {
        let end = store.committed_bytes();
        let visited = store.changes_between(byte, end, |tree, key, value| {
            seen.push(format!("{tree}/{key}={value}"));
            Ok(())
        });
        visited.unwrap();
        (end, std::mem::take(&mut seen))
    };
    let (end, first) = since(0);
    assert_eq!(first, ["t/a=1"]);
    store.commit_blocking(vec![Change::put("t", "b", &2), Change::remove("t", "a")]).unwrap();
    let (last, second) = since(end);
    assert_eq!(second, ["t/b=2", "t/a=null"]);
    assert_eq!((last, since(last).1.len()), (store.committed_bytes(), 0));
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

/// A log that can be neither written nor cut: here because it is open for reading alone.
#[test]
fn a_log_whose_torn_end_could_not_be_cut_takes_no_more_commits() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put(&store, "a", 1);
    let path = dir.path().join("log");
    let whole = std::fs::read(&path).unwrap();
    let writer = Writer::new(File::open(&path).unwrap(), path.clone(), store.inner.index.clone());
    let (queue, waiting) = mpsc::channel(WAITING);
    let thread = std::thread::spawn(move || writer.run(waiting));
    let commit = |value: u64| {
        let (done, answer) = oneshot::channel();
        queue.blocking_send(Commit { changes: vec![Change::put("t", "b", &value)], done }).unwrap();
        answer.blocking_recv().unwrap().unwrap_err().to_string()
    };
    let first = commit(2);
    assert!(first.contains("log: cannot write") && !first.contains("torn"), "{first}");
    for value in [3, 4] {
        let refused = commit(value);
        assert!(refused.contains("torn by an earlier failure; start the program again"), "{refused}");
    }
    drop(queue);
    thread.join().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    assert_eq!(all(&store), pairs(&[("a", 1)]), "what was not committed is not there");
    drop(store);
    assert_eq!(all(&Store::open(dir.path()).unwrap()), pairs(&[("a", 1)]));
}
