//! `worker score` killed between packs, its journal torn by hand: the same command ends with the same bytes, and a
//! damaged journal is said, not used.

use cluster_tests::Folder;

fn command(out: &str) -> String {
    format!(
        "score --model-name-or-path {{tied}} --init-adapter {{adapter}} --dataset-json-path records.json --out {out} \
         --gold-out {out}.gold --gold-batch-size 6 --pack-tokens 150"
    )
}

#[track_caller]
fn same(folder: &Folder, out: &str) {
    assert!(folder.bytes(out) == folder.bytes("whole.json"), "{out} differs from the undisturbed run's");
    let gold = folder.bytes(&format!("{out}.gold"));
    assert!(gold == folder.bytes("whole.json.gold"), "{out}.gold differs");
    assert!(!folder.path(&format!("{out}.journal")).exists(), "the journal is left");
}

#[test]
fn ends_with_the_same_bytes_wherever_it_was_killed() {
    let folder = Folder::new();
    folder.succeed(&command("whole.json"));
    for pack in 1..=3 {
        let out = format!("killed-{pack}.json");
        folder.killed(&command(&out), &format!("score.pack={pack}"));
        assert!(!folder.path(&out).exists());
        folder.succeed(&command(&out));
        same(&folder, &out);
    }
}

#[test]
fn a_torn_last_line_is_computed_again() {
    let folder = Folder::new();
    folder.succeed(&command("whole.json"));
    for (name, torn) in [("cut", -7isize), ("begun", 5), ("header", -10_000)] {
        let out = format!("{name}.json");
        folder.killed(&command(&out), "score.pack=3");
        let journal = format!("{name}.json.journal");
        let mut bytes = folder.bytes(&journal);
        assert_eq!(bytes.iter().filter(|&&b| b == b'\n').count(), 3, "a header and two packs");
        if torn < 0 {
            bytes.truncate(bytes.len().saturating_sub(torn.unsigned_abs()).max(4));
        } else {
            bytes.extend(&b"[1.5,\xff"[..torn as usize]);
        }
        folder.write(&journal, bytes);
        folder.succeed(&command(&out));
        same(&folder, &out);
    }
}

#[test]
fn a_journal_damaged_inside_or_of_other_work_is_refused() {
    let folder = Folder::new();
    folder.killed(&command("a.json"), "score.pack=3");
    folder.refused(&format!("{} --beta 0.5", command("a.json")), &["a.json.journal", "other settings", "remove it"]);
    let text = String::from_utf8(folder.bytes("a.json.journal")).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines[1] = "[1.0, oops]";
    folder.write("a.json.journal", lines.join("\n") + "\n");
    folder.refused(&command("a.json"), &["a.json.journal", "line 2", "remove it"]);
}
