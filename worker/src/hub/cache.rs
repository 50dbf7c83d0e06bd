//! The hub's cache of one model: `blobs/ETAG`, `refs/REVISION` holding a commit, `snapshots/COMMIT/FILE` linking to blobs.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::Part;
use super::id::HubId;

/// Weights in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The list of shards.
pub const INDEX: &str = "model.safetensors.index.json";

const PREFIX: &str = "models--";

/// One model's folder in the cache.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Cache {
    /// Names the folder; makes nothing.
    pub fn of(root: &Path, id: &HubId) -> Cache {
        let name = format!("{PREFIX}{}--{}", id.org, id.name);
        Cache { folder: root.join(&name), locks: root.join(".locks").join(&name), revision: id.revision.clone() }
    }

    /// Returns the folder of a commit's files.
    pub fn folder(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Returns where a blob is.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Returns the file that is locked while a blob is fetched.
    pub fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Returns the snapshot of the revision, if it has all that is wanted of it.
    ///
    /// # Errors
    /// It has not; says what is missing.
    pub fn snapshot(&self, part: Part) -> Result<PathBuf, String> {
        let reference = self.folder.join("refs").join(&self.revision);
        let commit = std::fs::read_to_string(&reference).map_or(self.revision.clone(), |text| text.trim().to_owned());
        let folder = self.folder(&commit);
        if !is_plain(&commit) || !folder.is_dir() {
            return Err(format!("revision {} is not in the cache {}", self.revision, self.folder.display()));
        }
        let missing = |name: &str| format!("{} is not in the cache: {name} was never fetched whole", folder.display());
        let mut needed = vec!["config.json".to_owned()];
        if part == Part::Description {
            // Nothing else is needed.
        } else if folder.join(INDEX).exists() && !folder.join(WEIGHTS).exists() {
            needed.extend(shards(&folder)?);
        } else {
            needed.push(WEIGHTS.to_owned());
        }
        match needed.iter().find(|name| !folder.join(name).exists()) {
            Some(name) => Err(missing(name)),
            None => Ok(folder),
        }
    }

    /// Makes the revision point to a commit whose files are all there.
    pub fn point(&self, commit: &str) -> std::io::Result<()> {
        if self.revision == commit {
            return Ok(());
        }
        let reference = self.folder.join("refs").join(&self.revision);
        if let Some(parent) = reference.parent() {
            std::fs::create_dir_all(parent)?;
        }
        shared::output::write_atomic(&reference, commit.as_bytes()).map_err(std::io::Error::other)
    }

    /// Makes a file of a commit a link to a blob.
    pub fn link(&self, commit: &str, name: &str, etag: &str) -> std::io::Result<()> {
        let folder = self.folder(commit);
        std::fs::create_dir_all(&folder)?;
        let beside = folder.join(format!("{name}.{}.tmp", std::process::id()));
        let _ = std::fs::remove_file(&beside);
        std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), &beside)?;
        std::fs::rename(&beside, folder.join(name))
    }
}

/// Returns whether a name is that of a file in a folder itself: no path, nothing hidden.
pub fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let single = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name);
    single && !name.starts_with('.') && !name.contains(['\\', '\0'])
}

/// Returns the files that a snapshot's index names.
///
/// # Errors
/// The index is damaged.
pub fn shards(folder: &Path) -> Result<Vec<String>, String> {
    let file = folder.join(INDEX);
    let index: Value = shared::input::read_json(&file).map_err(|error| error.to_string())?;
    let map = index["weight_map"].as_object().ok_or_else(|| format!("{}: has no weight_map", file.display()))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Returns `ORG/NAME` of a folder `models--ORG--NAME/snapshots/COMMIT`.
pub fn name_of_snapshot(folder: &Path) -> Option<String> {
    let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
    let model = snapshots.parent()?.file_name()?.to_str()?;
    Some(model.strip_prefix(PREFIX)?.replacen("--", "/", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_outside_stay_in_their_folder() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", ".hidden", "a\\b", "a/"] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn a_snapshots_model_is_known() {
        let name = |path: &str| name_of_snapshot(Path::new(path));
        assert_eq!(name("/c/models--org--a-b/snapshots/0123").as_deref(), Some("org/a-b"));
        assert_eq!(name("/c/models--org--a/other/0123"), None);
        assert_eq!(name("/models/mine"), None);
    }
}
