//! Models by hub id: `ORG/NAME` or `ORG/NAME@REVISION` instead of a folder.
//!
//! A folder of that name wins. Otherwise the files are taken from the hub's cache, in the layout that the Python
//! packages share (`models--ORG--NAME/{blobs,refs,snapshots}`), after those that are missing were fetched. Promises that
//! what has a blob's name is whole: a download goes on where an earlier one was cut off, and is renamed only when its
//! size and its hash are the ones the hub stated. Where the hub cannot be reached, a snapshot that is complete is used.

mod blob;
mod cache;
mod client;
mod id;

use std::path::{Path, PathBuf};

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};
use secrecy::SecretString;

use self::cache::{Cache, INDEX, WEIGHTS};
use self::client::{Client, Failure};
pub use self::id::HubId;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::model_folder::TEXT_FILES;

/// Where models that are named by hub id come from. The variables are those of the hub's own packages.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models by hub id (ORG/NAME[@REVISION])")]
pub struct HubArgs {
    /// The hub, or a mirror of it.
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co", value_name = "URL")]
    pub hf_endpoint: String,
    /// The cache of models [default: HF_HOME/hub].
    #[arg(long, env = "HF_HUB_CACHE", value_name = "DIR")]
    pub hf_hub_cache: Option<PathBuf>,
    /// Folder of the hub's packages [default: ~/.cache/huggingface].
    #[arg(long, env = "HF_HOME", value_name = "DIR")]
    pub hf_home: Option<PathBuf>,
    /// Token for models that are not public; better given by the variable than on the command line.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub hf_token: Option<SecretString>,
    /// Asks nobody: models must be in the cache.
    #[arg(long, env = "HF_HUB_OFFLINE", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub hf_hub_offline: bool,
    #[arg(long, env = "XDG_CACHE_HOME", hide = true)]
    xdg_cache_home: Option<PathBuf>,
}

impl HubArgs {
    fn cache_root(&self) -> Result<PathBuf> {
        if let Some(cache) = &self.hf_hub_cache {
            return Ok(cache.clone());
        }
        if let Some(home) = &self.hf_home {
            return Ok(home.join("hub"));
        }
        let caches = self.xdg_cache_home.clone().or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
        let caches = caches.ok_or_else(|| Error::Config("there is no home folder: give --hf-hub-cache".into()))?;
        Ok(caches.join("huggingface/hub"))
    }
}

/// Fetches a model into the hub's cache, if it is not there yet, and prints its folder: for run files, which take folders.
#[derive(Debug, Clone, Args)]
pub struct FetchCommand {
    /// ORG/NAME[@REVISION]
    #[arg(value_name = "ID")]
    pub model: PathBuf,
    /// Where it comes from.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// Returns the folder of a model: the one named, or the snapshot of a hub id in the cache, fetched where it is missing.
///
/// # Errors
/// The hub refuses or does not know the model, what it sends is not what it announced, the model has no safetensors
/// weights, the cache cannot be written, or offline the model is not in it.
pub fn resolve(name: &Path, args: &HubArgs, control: &Control) -> Result<PathBuf> {
    resolve_part(name, args, control, Part::Whole)
}

/// As [`resolve`], of a model whose weights are not needed: they are not fetched, and may be missing in the cache.
///
/// # Errors
/// As there, but for the weights.
pub fn resolve_description(name: &Path, args: &HubArgs, control: &Control) -> Result<PathBuf> {
    resolve_part(name, args, control, Part::Description)
}

/// What is wanted of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// All that a computation needs.
    Whole,
    /// Configuration and text side.
    Description,
}

fn resolve_part(name: &Path, args: &HubArgs, control: &Control, part: Part) -> Result<PathBuf> {
    let Some(id) = HubId::of(name).filter(|_| !name.exists()) else { return Ok(name.to_owned()) };
    let cache = Cache::of(&args.cache_root()?, &id);
    if args.hf_hub_offline {
        return cache.snapshot(part).map_err(|problem| {
            Error::model(name, format!("{problem}; the hub may not be asked (HF_HUB_OFFLINE, --hf-hub-offline)"))
        });
    }
    let fetched = Client::new(&args.hf_endpoint, args.hf_token.clone()).and_then(|client| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::disk)?;
        runtime.block_on(fetch(&id, &cache, &client, control, part))
    });
    match fetched {
        Ok(folder) => Ok(folder),
        Err(Failure::Stopped) => Err(Error::Stopped),
        Err(Failure::Away(reason)) => match cache.snapshot(part) {
            Ok(folder) => {
                tracing::warn!("{id}: {reason}; the snapshot in the cache is used");
                Ok(folder)
            }
            Err(problem) => Err(Error::model(name, format!("{reason}; {problem}"))),
        },
        Err(Failure::Refused(problem)) => {
            Err(Error::model(name, format!("{problem} (there is no folder of that name here either)")))
        }
        Err(Failure::Wrong(problem)) => Err(Error::model(name, problem)),
    }
}

/// Returns the name of a model whose folder is a snapshot in a hub's cache: `ORG/NAME`.
pub fn name_of_snapshot(folder: &Path) -> Option<String> {
    cache::name_of_snapshot(folder)
}

async fn fetch(
    id: &HubId,
    cache: &Cache,
    client: &Client,
    control: &Control,
    part: Part,
) -> std::result::Result<PathBuf, Failure> {
    let listing = client.listing(id).await?;
    let has = |name: &str| listing.files.iter().any(|file| file == name);
    let text: Vec<&str> = TEXT_FILES.into_iter().chain(["config.json"]).filter(|name| has(name)).collect();
    if !has("config.json") {
        return Err(Failure::Wrong(format!("revision {} has no config.json: it is no model", listing.commit)));
    }
    let folder = cache.folder(&listing.commit);
    let all = |names: &[String]| -> std::result::Result<Vec<String>, Failure> {
        match names.iter().find(|name| !has(name) || !cache::is_plain(name)) {
            Some(name) => Err(Failure::Wrong(format!("its {INDEX} names {name:?}, which it does not have"))),
            None => Ok(names.to_vec()),
        }
    };
    client
        .fetch(id, cache, &listing.commit, &text.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), control)
        .await?;
    // The revision points to whole snapshots only: this one is found by its commit.
    if part == Part::Description {
        return Ok(folder);
    }
    let weights = if has(WEIGHTS) {
        vec![WEIGHTS.to_owned()]
    } else if has(INDEX) {
        client.fetch(id, cache, &listing.commit, &[INDEX.to_owned()], control).await?;
        all(&cache::shards(&folder).map_err(Failure::Wrong)?)?
    } else {
        return Err(Failure::Wrong(format!(
            "revision {} has neither {WEIGHTS} nor {INDEX}; weights in other formats must be converted first",
            listing.commit
        )));
    };
    client.fetch(id, cache, &listing.commit, &weights, control).await?;
    cache.point(&listing.commit).map_err(Failure::disk)?;
    Ok(folder)
}

#[cfg(test)]
mod tests;
