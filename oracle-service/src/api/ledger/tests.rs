use super::*;

fn answer(text: &str) -> Answer {
    Answer { text: Some(text.into()), finish: "stop".into(), model: "m".into(), ..Answer::default() }
}

/// Opens a ledger where it may wait for the disk.
async fn open(folder: &Path) -> Ledger {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || Ledger::open(&folder).unwrap()).await.unwrap()
}

fn key(n: usize) -> String {
    format!("{n:032x}")
}

fn account() -> Arc<account::Account> {
    account::Account::new("test", [])
}

/// Makes a ledger of some answers, and closes it.
async fn filled(folder: &Path, answers: std::ops::Range<usize>) {
    let ledger = Ledger::open(folder).unwrap();
    let account = account();
    for n in answers {
        let mut money = account.incur(Money::default());
        ledger.intend(&key(n), "m", 1, money.opened()).await.unwrap();
        ledger.settle(&key(n), &answer(&n.to_string()), money.settled(Money::default())).await.unwrap();
    }
}

/// Damages the line of the log that holds an answer.
fn damage(folder: &Path, n: usize) {
    let log = folder.join("log");
    let text = std::fs::read_to_string(&log).unwrap();
    let place = text.find(&format!("[\"answers\",\"{}\"", key(n))).unwrap() + 60;
    let mut bytes = text.into_bytes();
    bytes[place] ^= 1;
    std::fs::write(&log, bytes).unwrap();
}

fn drop_index(folder: &Path) {
    std::fs::remove_dir_all(folder.join("index")).unwrap();
}

fn known(ledger: &Ledger, answers: std::ops::Range<usize>) -> Vec<bool> {
    answers.map(|n| ledger.answer(&key(n)).unwrap() == Some(answer(&n.to_string()))).collect()
}

#[tokio::test]
async fn a_damaged_log_is_made_anew_from_its_whole_lines_and_the_exports() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    filled(folder, 0..4).await;
    // What came after the last export is lost where it is damaged, and listed.
    std::fs::rename(folder.join("exports"), dir.path().join("kept")).unwrap();
    filled(folder, 4..8).await;
    std::fs::remove_dir_all(folder.join("exports")).unwrap();
    std::fs::rename(folder.join("kept"), folder.join("exports")).unwrap();
    damage(folder, 2);
    damage(folder, 5);
    drop_index(folder);
    let ledger = open(folder).await;
    assert_eq!(known(&ledger, 0..8), [true, true, true, true, true, false, true, true]);
    assert_eq!(ledger.count().unwrap(), 7);
    drop(ledger);
    let loss: Vec<serde_json::Value> = shared::input::read_all(&folder.join("set-aside-1/loss.jsonl")).unwrap();
    let answers = loss.iter().filter(|l| l["kind"] == "answers");
    let answers: Vec<_> = answers.map(|l| (l["key"].clone(), l["restored"].clone())).collect();
    assert_eq!(answers, [(key(2).into(), true.into()), (key(5).into(), false.into())]);
    // It goes on, and its exports are whole again.
    std::fs::remove_file(folder.join("log")).unwrap();
    let ledger = open(folder).await;
    assert_eq!(known(&ledger, 0..8), [true, true, true, true, true, false, true, true]);
}

#[tokio::test]
async fn what_was_moved_aside_stays_so_when_the_log_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0..4).await;
    let ledger = open(dir.path()).await;
    let asked_again = Answer { at_ms: 5, ..answer("again") };
    let moving = ledger.clone();
    tokio::task::spawn_blocking(move || moving.move_aside(&[key(0), key(1)].into()).unwrap()).await.unwrap();
    let mut money = account().incur(Money::default());
    ledger.settle(&key(1), &asked_again, money.settled(Money::default())).await.unwrap();
    drop((ledger, money));
    damage(dir.path(), 3);
    drop_index(dir.path());
    let ledger = open(dir.path()).await;
    assert_eq!(known(&ledger, 0..4), [false, false, true, true]);
    assert_eq!(ledger.answer(&key(1)).unwrap(), Some(asked_again));
}

#[tokio::test]
async fn damage_under_an_index_that_is_up_to_date_is_mended_from_the_exports() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0..3).await;
    damage(dir.path(), 1);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(known(&ledger, 0..3), [true; 3]);
    drop(ledger);
    std::fs::remove_dir_all(dir.path().join("exports")).unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(known(&ledger, 0..3), [true, false, true]);
}

#[tokio::test]
async fn each_answer_is_exported_once_whenever_it_came() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 0..3).await;
    filled(dir.path(), 3..3).await;
    filled(dir.path(), 3..5).await;
    let mut keys = Vec::new();
    exports::visit(&dir.path().join("exports"), |key, _| {
        keys.push(key);
        Ok(())
    })
    .unwrap();
    assert_eq!(keys, (0..5).map(key).collect::<Vec<_>>());
    assert_eq!(std::fs::read_dir(dir.path().join("exports")).unwrap().count(), 2);
}

#[tokio::test]
async fn requests_in_flight_at_a_death_are_open_and_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let account = account();
    let mut money: Vec<_> = (0..3).map(|_| account.incur(Money::default())).collect();
    for (n, money) in money.iter().enumerate() {
        ledger.intend(&key(n), "m", 1, money.opened()).await.unwrap();
    }
    ledger.settle(&key(0), &answer("0"), money[0].settled(Money::default())).await.unwrap();
    ledger.withdraw(&key(1), Some(money[1].closed())).await.unwrap();
    drop(ledger);
    let ledger = Ledger::open(dir.path()).unwrap();
    assert_eq!(ledger.store.count(INTENTS).unwrap(), 1);
    assert_eq!(known(&ledger, 0..3), [true, false, false]);
}
