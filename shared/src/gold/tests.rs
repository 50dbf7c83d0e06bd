use super::*;

/// Records whose responses name their index, of categories given by a letter each (R, I, P).
fn records(categories: impl Iterator<Item = char>) -> Vec<Record> {
    categories
        .enumerate()
        .map(|(index, letter)| Record {
            prompt: format!("x{index}").into(),
            chosen: format!("chosen {index}").into(),
            rejected: Some(format!("rejected {index}").into()),
            category: Some(match letter {
                'R' => Category::Retain,
                'I' => Category::Invert,
                _ => Category::Punish,
            }),
            ..Record::default()
        })
        .collect()
}

fn repeated(pattern: &str, count: usize) -> Vec<Record> {
    records(pattern.chars().cycle().take(count))
}

fn drawn_from(pairs: &[GoldPair]) -> Vec<(usize, Option<usize>)> {
    let origins = pairs.iter().map(|pair| pair.origin.as_ref().unwrap());
    origins
        .map(|origin| match origin.chosen_from {
            Some(ChosenFrom::Record(other)) => (origin.record, Some(other)),
            _ => (origin.record, None),
        })
        .collect()
}

/// Draws from all records of a file.
fn draw(records: &[Record], options: GoldOptions) -> Result<Vec<GoldPair>> {
    let index: Vec<usize> = (0..records.len()).collect();
    super::draw(Pool { file: Path::new("pairs.json"), records, index: &index }, options).map(|drawn| drawn.pairs)
}

fn size(size: usize) -> GoldOptions {
    GoldOptions { size, ..GoldOptions::default() }
}

#[test]
fn draws_follow_pythons_generator_in_the_stated_order() {
    // Computed with CPython's random.Random(42): three samples, then one choice per PUNISH pair.
    let alone = [68, 13, 3, 79, 29, 36, 96, 21, 16, 11].map(|index| (index, None));
    let with_other =
        [(92, 49), (67, 21), (7, 86), (2, 5), (12, 56), (17, 43)].map(|(index, other)| (index, Some(other)));
    let pairs = draw(&repeated("RIPRR", 100), size(16)).unwrap();
    assert_eq!(drawn_from(&pairs), [&alone[..], &with_other].concat());
}

#[test]
fn pairs_are_the_ones_of_algorithm_2() {
    let pairs = draw(&repeated("RIP", 300), size(64)).unwrap();
    assert_eq!(pairs.len(), 64);
    for (position, pair) in pairs.iter().enumerate() {
        let origin = pair.origin.as_ref().unwrap();
        let (category, chosen, rejected) = match position {
            0..21 => (Category::Retain, origin.record, format!("rejected {}", origin.record)),
            21..42 => (Category::Invert, origin.record, format!("rejected {}", origin.record)),
            _ => match origin.chosen_from {
                Some(ChosenFrom::Record(other)) => (Category::Punish, other, format!("chosen {}", origin.record)),
                _ => panic!("a PUNISH pair without compliant response"),
            },
        };
        assert_eq!(origin.category, category);
        assert_eq!(pair.prompt, format!("x{}", origin.record).into());
        assert_eq!((&pair.chosen, &pair.rejected), (&format!("chosen {chosen}"), &rejected));
    }
}

#[test]
fn punish_fills_what_is_missing_and_a_short_batch_is_returned_short() {
    let expected = [(12, None), (0, None), (6, None)].into_iter();
    let others = [(14, 6), (5, 0), (4, 0), (15, 0), (3, 0), (2, 0), (10, 12), (11, 12), (16, 0)];
    let expected: Vec<_> = expected.chain(others.map(|(index, other)| (index, Some(other)))).collect();
    assert_eq!(drawn_from(&draw(&repeated("RPPPPP", 18), size(12)).unwrap()), expected);
    assert_eq!(draw(&repeated("RI", 10), size(64)).unwrap().len(), 10);
}

#[test]
fn corrections_replace_unrelated_responses_and_change_no_other_pair() {
    let mut records = repeated("RIPRR", 100);
    records[67].oracle_response = Some("corrected".into());
    records[92].oracle_response = Some(String::new());
    let plain = draw(&records, size(16)).unwrap();
    let corrected = draw(&records, GoldOptions { use_corrections: true, ..size(16) }).unwrap();
    for (plain, corrected) in plain.iter().zip(&corrected) {
        let origin = corrected.origin.as_ref().unwrap();
        if origin.record == 67 {
            assert_eq!(corrected.chosen, "corrected");
            assert_eq!(origin.chosen_from, Some(ChosenFrom::Correction));
            assert_eq!(plain.rejected, corrected.rejected);
        } else {
            assert_eq!(plain, corrected);
        }
    }
    assert!(drawn_from(&corrected).iter().any(|(record, _)| *record == 67));
}

#[test]
fn punish_records_alone_need_corrections() {
    let mut records = repeated("P", 6);
    let message = draw(&records, size(4)).unwrap_err().to_string();
    let says = "pairs.json: no gold pair can be drawn: 6 records (0 INVERT, 6 PUNISH, 0 RETAIN), size 4; ";
    assert!(message.starts_with(says), "{message}");
    records[3].oracle_response = Some("corrected".into());
    assert!(draw(&records, size(4)).is_err());
    let pairs = draw(&records, GoldOptions { use_corrections: true, ..size(4) }).unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.chosen.as_str()).collect::<Vec<_>>(), ["corrected"]);
}

#[test]
fn a_record_without_category_is_named() {
    let mut records = repeated("R", 3);
    records[1].category = None;
    let message = draw(&records, size(2)).unwrap_err().to_string();
    assert!(message.starts_with("pairs.json: record 1: field \"category\": is missing"), "{message}");
}

#[test]
fn origins_name_places_in_the_file() {
    // Records 0 and 2 of the file have no text and are not drawn from.
    let (records, index) = (repeated("RIP", 3), [1, 3, 4]);
    let drawn = super::draw(Pool { file: Path::new("pairs.json"), records: &records, index: &index }, size(3)).unwrap();
    let from = drawn_from(&drawn.pairs);
    assert_eq!((from[0], from[1], from[2].0), ((1, None), (3, None), 4));
    assert!([Some(1), Some(3)].contains(&from[2].1), "{from:?}");
    assert_eq!(drawn.warnings, [""; 0]);
}

#[test]
fn what_is_wanting_is_told_with_counts() {
    let records = repeated("RI", 10);
    let index: Vec<usize> = (0..10).collect();
    let drawn =
        super::draw(Pool { file: Path::new("pairs.json"), records: &records, index: &index }, size(64)).unwrap();
    let [empty, short] = &drawn.warnings[..] else { panic!("{:?}", drawn.warnings) };
    assert!(empty.starts_with("there is no PUNISH record among those"), "{empty}");
    assert!(empty.contains("(5 INVERT, 0 PUNISH, 5 RETAIN)"), "{empty}");
    assert!(
        short.starts_with("the gold batch has 10 of the 64 pairs asked for (5 INVERT, 0 PUNISH, 5 RETAIN)"),
        "{short}"
    );
    let all = CategoryCounts::of([Category::Punish]);
    assert!(warnings(all, &drawn.pairs, 10)[0].starts_with("there is no INVERT and no RETAIN record"));
}

#[test]
fn files_round_trip_and_origin_is_optional() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gold.json");
    let pairs = draw(&repeated("RIP", 9), size(9)).unwrap();
    write(&path, &pairs).unwrap();
    assert_eq!(read(&path).unwrap(), pairs);
    std::fs::write(
        &path,
        r#"[{"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": "", "rejected": "r"}]"#,
    )
    .unwrap();
    let message = read(&path).unwrap_err().to_string();
    assert!(message.contains("gold.json: record 1: field \"chosen\": is empty"), "{message}");
}
