//! What the programs' command lines have in common.

use std::ffi::OsString;

/// Rewrites flag names from snake case to kebab case: `--input_json=a_b` becomes `--input-json=a_b`.
///
/// The reference's flags are written with underscores, clap's with hyphens; both are accepted (decisions, "Names").
/// Values stay as they are, and so does everything after a bare `--`.
pub fn normalise_flags(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut names_end = false;
    args.into_iter()
        .map(|arg| {
            if names_end {
                return arg;
            }
            names_end = arg == "--";
            match arg.to_str().and_then(rewritten) {
                Some(flag) => flag.into(),
                None => arg,
            }
        })
        .collect()
}

fn rewritten(arg: &str) -> Option<String> {
    let flag = arg.strip_prefix("--")?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !is_name || !name.contains('_') {
        return None;
    }
    let name = name.replace('_', "-");
    Some(match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(args: &[&str]) -> Vec<String> {
        normalise_flags(args.iter().map(OsString::from)).into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    #[test]
    fn underscores_of_flag_names_become_hyphens() {
        assert_eq!(
            normalised(&["data", "--input_json", "a_b.json", "--num_samples=5", "--seed", "1"]),
            ["data", "--input-json", "a_b.json", "--num-samples=5", "--seed", "1"]
        );
    }

    #[test]
    fn values_and_other_words_are_left_alone() {
        assert_eq!(normalised(&["--out=a_b", "a_b", "-x_y", "--1_2"]), ["--out=a_b", "a_b", "-x_y", "--1_2"]);
        assert_eq!(normalised(&["--set=a_b=c_d", "-- a_b"]), ["--set=a_b=c_d", "-- a_b"]);
    }

    #[test]
    fn nothing_changes_after_a_bare_double_hyphen() {
        assert_eq!(normalised(&["--a_b", "--", "--c_d"]), ["--a-b", "--", "--c_d"]);
    }
}
