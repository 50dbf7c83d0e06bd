//! What was triaged, and what the run took in time and money.

use super::{Section, Table};
use crate::report::{Report, Stage, Triage};

/// Outcomes of triage with their counts, in the order they are told.
pub(in crate::report) fn outcomes(triage: &Triage) -> [(&'static str, usize); 5] {
    [
        ("INVERT", triage.invert),
        ("PUNISH", triage.punish),
        ("RETAIN", triage.retain),
        ("uncertain", triage.uncertain),
        ("dead letter", triage.dead_letter),
    ]
}

pub(in crate::report) fn percent(count: usize, triage: &Triage) -> String {
    let all: usize = outcomes(triage).iter().map(|(_, count)| count).sum();
    format!("{:.1}", 100.0 * count as f64 / all.max(1) as f64)
}

pub(super) fn triage(triage: &Triage) -> Section {
    let mut table = Table::new("Triaged pairs", &["outcome", "pairs", "%"]);
    for (name, count) in outcomes(triage) {
        table.push([name.to_owned(), count.to_string(), percent(count, triage)]);
    }
    let sentence = "Pairs by what the judge found under the new policy. INVERT: the old winner violates, the old loser \
                    complies. PUNISH: both violate. RETAIN: the old winner complies. Uncertain pairs and dead letters \
                    (no usable answer) were set aside.";
    Section { id: "triage", title: "Triage", paragraphs: vec![sentence.to_owned()], tables: vec![table] }
}

pub(super) fn cost(report: &Report) -> Section {
    let mut paragraphs = Vec::new();
    let mut tables = Vec::new();
    if report.stages.is_empty() {
        paragraphs.push("The run recorded no stages.".to_owned());
    } else {
        tables.push(stages(report));
    }
    if report.stages.iter().any(|stage| stage.skipped) {
        paragraphs.push("Stages marked as earlier were finished by an earlier invocation of the run.".to_owned());
    }
    match &report.oracle {
        None => paragraphs.push("The run recorded no calls of an oracle.".to_owned()),
        Some(oracle) => {
            let (model, prices) = (&oracle.model, &oracle.prices);
            paragraphs
                .push(format!("The oracle was {model}. Its cost follows from the tokens and these prices: {prices}."));
            let heads = [
                "calls",
                "answers reused",
                "prompt tokens",
                "of these cached",
                "completion tokens",
                "cost (USD)",
                "per label (USD)",
            ];
            let mut table = Table::new("Oracle", &heads);
            let counts =
                [oracle.calls, oracle.reused, oracle.prompt_tokens, oracle.cached_tokens, oracle.completion_tokens];
            let triage = &report.triage;
            let labels = triage.invert + triage.punish + triage.retain;
            let spent = report.stages.iter().filter(|stage| stage.name == "triage").map(|stage| stage.cost_usd);
            let per_label = if labels == 0 { "–".to_owned() } else { usd(spent.sum::<f64>() / labels as f64) };
            let cells = counts.map(|count| count.to_string()).into_iter();
            table.push(cells.chain([usd(oracle.cost_usd), per_label]));
            tables.push(table);
        }
    }
    Section { id: "cost", title: "Time and cost", paragraphs, tables }
}

fn stages(report: &Report) -> Table {
    let mut table = Table::new("Stages", &["stage", "seconds", "cost (USD)", ""]);
    let mut row = |name: &str, seconds: f64, cost: f64, remark: &str| {
        table.push([name.to_owned(), format!("{seconds:.1}"), usd(cost), remark.to_owned()]);
    };
    for stage in &report.stages {
        row(&stage.name, stage.seconds, stage.cost_usd, if stage.skipped { "earlier" } else { "" });
    }
    let sum = |stages: &mut dyn Iterator<Item = &Stage>| {
        stages.fold((0.0, 0.0), |(seconds, cost), stage| (seconds + stage.seconds, cost + stage.cost_usd))
    };
    let (seconds, cost) = sum(&mut report.stages.iter());
    row("total", seconds, cost, "");
    if report.stages.iter().any(|stage| stage.skipped) {
        let (seconds, cost) = sum(&mut report.stages.iter().filter(|stage| !stage.skipped));
        row("of this, last invocation", seconds, cost, "");
    }
    table
}

/// Returns an amount in dollars: cents, or more digits where cents would say nothing.
pub(in crate::report) fn usd(amount: f64) -> String {
    if amount == 0.0 || amount >= 0.1 { format!("{amount:.2}") } else { format!("{amount:.6}") }
}

/// Returns a time as people say it.
pub(in crate::report) fn duration(seconds: f64) -> String {
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    let (hours, minutes) = (whole / 3600, whole % 3600 / 60);
    match hours {
        0 => format!("{minutes} min {} s", whole % 60),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!(
            [0.04, 59.949, 59.95, 125.0, 7260.0].map(duration),
            ["0.0 s", "59.9 s", "1 min 0 s", "2 min 5 s", "2 h 1 min"]
        );
        assert_eq!([0.0, 0.0034, 12.345].map(usd), ["0.00", "0.003400", "12.35"]);
    }
}
