//! A model's name on the hub.

use std::fmt;
use std::path::Path;

/// `ORG/NAME` with a branch, tag or commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// Who owns it.
    pub org: String,
    /// Its name there.
    pub name: String,
    /// `main` where none was given.
    pub revision: String,
}

impl HubId {
    /// Reads `ORG/NAME` or `ORG/NAME@REVISION`; none for what can only be a path.
    pub fn of(path: &Path) -> Option<HubId> {
        let text = path.to_str()?;
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = id.split_once('/')?;
        let is_part = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.contains("--")
                && !part.contains("..")
        };
        let is_revision = revision.split('/').all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+".contains(c))
        });
        (is_part(org) && is_part(name) && is_revision).then(|| HubId {
            org: org.to_owned(),
            name: name.to_owned(),
            revision: revision.to_owned(),
        })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let id = HubId::of(Path::new("Qwen/Qwen2.5-0.5B")).unwrap();
        assert_eq!((id.to_string().as_str(), id.revision.as_str()), ("Qwen/Qwen2.5-0.5B", "main"));
        assert_eq!(HubId::of(Path::new("org/name@refs/pr/1")).unwrap().revision, "refs/pr/1");
        for path in
            ["model", "./a/b", "/a/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@../x", "a//b", "a/b c", "~/a", "a--b/c"]
        {
            assert_eq!(HubId::of(Path::new(path)), None, "{path}");
        }
    }
}
