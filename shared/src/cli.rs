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

/// Makes a program end quietly when whoever reads its output stops reading (`… | head`): call it once, from `main`.
///
/// Results are in files by then; only the tables on standard output are cut.
pub fn end_quietly_on_broken_pipe() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            // What a shell reports for a program ended by SIGPIPE.
            std::process::exit(141);
        }
        default(panic);
    }));
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
