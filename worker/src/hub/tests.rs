//! Models from a hub that a local server plays: fetched, resumed, checked, refused, offline.

mod server;

use std::collections::BTreeMap;

use clap::Parser;

use self::server::{COMMIT, FakeHub, Plan};
use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name)
}

/// The files of a golden model, and one that nobody needs.
fn files(name: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(golden(name)).unwrap().map(|entry| entry.unwrap());
    let mut files: BTreeMap<String, Vec<u8>> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !name.starts_with("golden") && !name.contains("old"))
        .collect();
    files.insert("pytorch_model.bin".into(), vec![0; 10]);
    files
}

fn sharded() -> BTreeMap<String, Vec<u8>> {
    files("tiny-llama/untied")
}

const SHARD: &str = "model-00001-of-00002.safetensors";

/// A hub, a cache, and what is asked of them.
struct World {
    hub: FakeHub,
    cache: tempfile::TempDir,
}

impl World {
    fn of(files: BTreeMap<String, Vec<u8>>, plan: Plan) -> World {
        World { hub: FakeHub::start(files, plan), cache: tempfile::tempdir().unwrap() }
    }

    fn args(&self) -> HubArgs {
        HubArgs {
            hf_endpoint: self.hub.url.clone(),
            hf_hub_cache: Some(self.cache.path().to_owned()),
            hf_home: None,
            hf_token: None,
            hf_hub_offline: false,
            xdg_cache_home: None,
        }
    }

    fn resolve(&self, name: &str) -> std::result::Result<PathBuf, String> {
        self.resolve_with(name, &self.args())
    }

    fn resolve_with(&self, name: &str, args: &HubArgs) -> std::result::Result<PathBuf, String> {
        resolve(Path::new(name), args, &Control::default()).map_err(|error| error.to_string())
    }

    fn offline(&self) -> HubArgs {
        HubArgs { hf_hub_offline: true, hf_endpoint: "http://127.0.0.1:9".into(), ..self.args() }
    }

    fn model(&self) -> PathBuf {
        self.cache.path().join("models--org--tiny")
    }

    fn partials(&self) -> Vec<(PathBuf, u64)> {
        let blobs = std::fs::read_dir(self.model().join("blobs")).unwrap().map(|entry| entry.unwrap());
        let blobs = blobs.map(|entry| (entry.path(), entry.metadata().unwrap().len()));
        blobs.filter(|(path, _)| path.extension().is_some()).collect()
    }
}

/// Asserts that a folder has these files to the byte, and not those that no model needs.
fn same(folder: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let found = std::fs::read(folder.join(name)).ok();
        let expected = (name != "pytorch_model.bin").then_some(bytes);
        assert_eq!(found.as_ref(), expected, "{name}");
    }
}

#[test]
fn a_model_is_fetched_into_the_hubs_layout_and_only_once() {
    let world = World::of(sharded(), Plan::default());
    let folder = world.resolve("org/tiny").unwrap();
    assert_eq!(folder, world.model().join("snapshots").join(COMMIT));
    same(&folder, &sharded());
    assert_eq!(std::fs::read_to_string(world.model().join("refs/main")).unwrap(), COMMIT);
    let link = std::fs::read_link(folder.join(SHARD)).unwrap();
    assert!(link.starts_with("../../blobs") && link.file_name().unwrap().len() == 64, "{}", link.display());
    assert_eq!(std::fs::read_link(folder.join("config.json")).unwrap().file_name().unwrap().len(), 40);
    assert!(world.partials().is_empty());
    let asked = world.hub.asked();
    assert!(!asked.iter().any(|line| line.contains("pytorch_model.bin")), "{asked:?}");

    assert_eq!(world.resolve("org/tiny").unwrap(), folder);
    assert_eq!(world.hub.asked(), ["GET /api/models/org/tiny/revision/main"], "all is there");
    for revision in [COMMIT, "v1"] {
        assert_eq!(world.resolve(&format!("org/tiny@{revision}")).unwrap(), folder);
    }
    assert_eq!(model_folder_names(&folder), ("tiny".into(), "org/tiny".into()));
}

fn model_folder_names(folder: &Path) -> (String, String) {
    (crate::model_folder::base_name(folder), crate::model_folder::full_name(folder))
}

#[test]
fn a_description_is_fetched_without_weights_and_is_no_model() {
    let world = World::of(sharded(), Plan::default());
    let folder = resolve_description(Path::new("org/tiny"), &world.args(), &Control::default()).unwrap();
    assert!(folder.join("config.json").exists() && folder.join("tokenizer.json").exists());
    assert!(!folder.join(SHARD).exists());
    assert!(world.resolve_with("org/tiny", &world.offline()).is_err(), "the weights are missing");
    assert_eq!(world.resolve("org/tiny").unwrap(), folder);
    assert!(folder.join(SHARD).exists());
    let offline = resolve_description(Path::new("org/tiny"), &world.offline(), &Control::default());
    assert_eq!(offline.unwrap(), folder);
}

#[test]
fn weights_in_one_file_are_preferred_to_shards() {
    let mut files = files("tiny-llama/tied");
    files.insert("model.safetensors.index.json".into(), b"{}".to_vec());
    let world = World::of(files.clone(), Plan::default());
    let folder = world.resolve("org/tiny").unwrap();
    assert!(folder.join("model.safetensors").exists() && !folder.join("model.safetensors.index.json").exists());
}

#[test]
fn a_connection_that_breaks_goes_on_where_it_was() {
    let size = sharded()[SHARD].len();
    let cut = Plan { cut: Some((SHARD.into(), size / 3 + 1)), ..Plan::default() };
    let world = World::of(sharded(), cut);
    same(&world.resolve("org/tiny").unwrap(), &sharded());
    let asked = world.hub.asked();
    let asked: Vec<_> = asked.iter().filter(|line| line.starts_with(&format!("GET /large/{SHARD}"))).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(!asked[0].contains("bytes=") && asked[2].contains("bytes="), "{asked:?}");
}

/// The program is killed in the middle: the next one resumes by a range; a server that knows none sends all again.
#[test]
fn what_an_earlier_program_left_is_used() {
    for (no_ranges, damaged) in [(false, false), (true, false), (false, true)] {
        let world = World::of(sharded(), Plan { cut: Some((SHARD.into(), 0)), ..Plan::default() });
        let text = world.resolve("org/tiny").unwrap_err();
        assert!(text.contains(SHARD) && text.contains("not in the cache"), "{text}");
        let [(partial, 0)] = &world.partials()[..] else { panic!("{:?}", world.partials()) };
        let mut left = sharded()[SHARD][..1000].to_vec();
        left[500] ^= u8::from(damaged);
        std::fs::write(partial, left).unwrap();
        world.hub.plan(Plan { no_ranges, ..Plan::default() });
        world.hub.asked();
        same(&world.resolve("org/tiny").unwrap(), &sharded());
        let asked = world.hub.asked();
        let ranged = format!("GET /large/{SHARD} bytes=1000-");
        assert!(asked.contains(&ranged), "{asked:?}");
        assert_eq!(asked.contains(&format!("GET /large/{SHARD}")), damaged, "{asked:?}");
        assert!(world.partials().is_empty());
    }
}

#[test]
fn bytes_with_another_hash_are_not_kept() {
    for name in [SHARD, "tokenizer.json"] {
        let world = World::of(sharded(), Plan { damaged: Some(name.into()), ..Plan::default() });
        let text = world.resolve("org/tiny").unwrap_err();
        assert!(text.starts_with("org/tiny: ") && text.contains(name) && text.contains("another hash"), "{text}");
        assert!(world.partials().is_empty());
        assert!(!world.model().join("snapshots").join(COMMIT).join(name).exists());
        assert!(world.resolve_with("org/tiny", &world.offline()).is_err());
        world.hub.plan(Plan::default());
        same(&world.resolve("org/tiny").unwrap(), &sharded());
    }
}

/// A blob that a full disk or another program cut short is noticed by its size.
#[test]
fn a_blob_of_another_size_is_fetched_again() {
    let world = World::of(sharded(), Plan::default());
    let folder = world.resolve("org/tiny").unwrap();
    let blob = folder.join(SHARD).canonicalize().unwrap();
    std::fs::write(&blob, b"short").unwrap();
    std::fs::remove_file(folder.join(SHARD)).unwrap();
    same(&world.resolve("org/tiny").unwrap(), &sharded());
}

#[test]
fn who_may_not_see_a_model_is_told_so_and_no_token_is_shown() {
    let world = World::of(sharded(), Plan { token: Some("hf_right".into()), ..Plan::default() });
    let text = world.resolve("org/tiny").unwrap_err();
    assert!(text.contains("refuses access to org/tiny (401") && text.contains("give one in HF_TOKEN"), "{text}");
    let with = |token: &str| HubArgs { hf_token: Some(SecretString::from(token.to_owned())), ..world.args() };
    let text = world.resolve_with("org/tiny", &with("hf_wrong")).unwrap_err();
    assert!(text.contains("with the token of HF_TOKEN") && !text.contains("hf_wrong"), "{text}");
    assert!(!format!("{:?}", with("hf_wrong")).contains("hf_wrong"));
    same(&world.resolve_with("org/tiny", &with("hf_right")).unwrap(), &sharded());
}

#[test]
fn models_and_revisions_that_are_not_there_are_named() {
    let world = World::of(sharded(), Plan::default());
    let text = world.resolve("org/other").unwrap_err();
    assert!(text.contains("has no model org/other") && text.contains("no folder of that name here"), "{text}");
    let text = world.resolve("org/tiny@v9").unwrap_err();
    assert!(text.contains("org/tiny has no revision \"v9\""), "{text}");
    let mut files = sharded();
    files.retain(|name, _| !name.contains("safetensors"));
    let text = World::of(files, Plan::default()).resolve("org/tiny").unwrap_err();
    assert!(text.contains("neither model.safetensors nor"), "{text}");
    let mut files = sharded();
    files.insert(INDEX.into(), br#"{"weight_map": {"a": "../../../x"}}"#.to_vec());
    let text = World::of(files, Plan::default()).resolve("org/tiny").unwrap_err();
    assert!(text.contains("\"../../../x\""), "{text}");
    let text = world.resolve_with("org/tiny", &HubArgs { hf_endpoint: "nonsense".into(), ..world.args() }).unwrap_err();
    assert!(text.contains("HF_ENDPOINT \"nonsense\""), "{text}");
}

#[test]
fn a_hub_in_trouble_is_asked_again_and_then_the_cache_is_used() {
    let world = World::of(sharded(), Plan { statuses: vec![503, 429], ..Plan::default() });
    let folder = world.resolve("org/tiny").unwrap();
    world.hub.plan(Plan { statuses: vec![500; 9], ..Plan::default() });
    assert_eq!(world.resolve("org/tiny").unwrap(), folder);
    let nobody = HubArgs { hf_endpoint: "http://127.0.0.1:9".into(), ..world.args() };
    assert_eq!(world.resolve_with("org/tiny", &nobody).unwrap(), folder);
    let text = world.resolve_with("org/unseen", &nobody).unwrap_err();
    assert!(text.contains("does not answer") && text.contains("revision main is not in the cache"), "{text}");
}

#[test]
fn offline_nobody_is_asked() {
    let world = World::of(sharded(), Plan::default());
    let text = world.resolve_with("org/tiny", &world.offline()).unwrap_err();
    assert!(text.contains("revision main is not in the cache") && text.contains("HF_HUB_OFFLINE"), "{text}");
    let folder = world.resolve("org/tiny").unwrap();
    world.hub.asked();
    for name in ["org/tiny".to_owned(), format!("org/tiny@{COMMIT}")] {
        assert_eq!(world.resolve_with(&name, &world.offline()).unwrap(), folder);
    }
    std::fs::remove_file(folder.join(SHARD)).unwrap();
    let text = world.resolve_with("org/tiny", &world.offline()).unwrap_err();
    assert!(text.contains(SHARD) && text.contains("was never fetched whole"), "{text}");
    assert!(world.hub.asked().is_empty());
}

#[test]
fn a_folder_of_that_name_wins_and_a_stop_order_is_obeyed() {
    let world = World::of(sharded(), Plan::default());
    let here = golden("tiny-llama");
    assert_eq!(world.resolve(here.to_str().unwrap()).unwrap(), here);
    assert_eq!(world.resolve("no-such-folder").unwrap(), Path::new("no-such-folder"));
    assert!(world.hub.asked().is_empty());
    let stop = crate::control::StopFlag::default();
    stop.set(crate::control::Stop::Cancelled);
    let control = Control::of_task(None, stop, Box::new(|_| ()), None);
    assert!(matches!(resolve(Path::new("org/tiny"), &world.args(), &control), Err(Error::Stopped)));
}

/// Two workers of one machine ask for the same model at once.
#[test]
fn two_at_once_fetch_every_file_once() {
    let world = World::of(sharded(), Plan::default());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| world.resolve("org/tiny").unwrap()));
        for one in both {
            same(&one.join().unwrap(), &sharded());
        }
    });
    let bodies = world.hub.asked().iter().filter(|line| line.starts_with(&format!("GET /large/{SHARD}"))).count();
    assert_eq!(bodies, 1);
}

#[test]
fn a_command_takes_a_hub_id_for_a_model() {
    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: crate::cli::Command,
    }
    let world = World::of(sharded(), Plan::default());
    let records = world.cache.path().join("records.json");
    std::fs::write(&records, r#"[{"prompt": "Tea?", "chosen": "Yes.", "rejected": "No."}]"#).unwrap();
    let log_probs = |model: &str| {
        let out = world.cache.path().join("out.jsonl");
        let words = ["worker", "logprobs", "--model", model, "--hf-endpoint", &world.hub.url, "--hf-hub-cache"];
        let paths = [world.cache.path(), Path::new("--records"), &records, Path::new("--out"), &out];
        let words = words.iter().map(|word| (*word).into()).chain(paths.iter().map(|path| path.as_os_str().to_owned()));
        let line = Line::try_parse_from(words.chain(["--threads".into(), "1".into()])).unwrap();
        crate::cli::carry_out(&line.command, &Control::default(), None).unwrap();
        std::fs::read_to_string(&out).unwrap()
    };
    let fetched = ["worker", "fetch", "org/tiny", "--hf-hub-offline", "--hf-hub-cache"].map(Into::into);
    let line = Line::try_parse_from(fetched.into_iter().chain([world.cache.path().as_os_str().to_owned()])).unwrap();
    log_probs("org/tiny");
    let done = crate::cli::carry_out(&line.command, &Control::default(), None).unwrap();
    assert_eq!(done.summary, world.model().join("snapshots").join(COMMIT).to_str().unwrap());
    assert_eq!(log_probs("org/tiny"), log_probs(golden("tiny-llama/untied").to_str().unwrap()));
}
