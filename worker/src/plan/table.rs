//! A plan as text.

use super::fit::{LARGEST, PLANNED_SHARE, STEP};
use super::memory::Work;
use super::pack::pair_tokens;
use super::{GIB, Plan, Trained};
use crate::bench::dtype_name;

/// Returns the table of a plan.
pub fn of(plan: &Plan) -> String {
    let what = match plan.trained {
        Trained::Lora => format!("an adapter of {} numbers", millions(plan.trained_parameters)),
        Trained::Full => "all weights".to_owned(),
    };
    let held = if plan.store == plan.dtype { String::new() } else { format!(", held as {}", dtype_name(plan.store)) };
    let mut text = format!(
        "{}: {} parameters ({}), {}{held}, training {what} on {}\n\n",
        plan.model,
        millions(plan.parameters),
        plan.weights_from,
        dtype_name(plan.dtype),
        plan.device
    );
    let mut row = |name: &str, plain: f64, recomputed: f64| {
        text += &format!("{name:<52}{:>10.3}{:>13.3}\n", plain / GIB, recomputed / GIB);
    };
    let (fixed, room) = (&plan.fixed, &plan.room);
    let process =
        if plan.device == "cpu" { "process: libraries, tokenizer" } else { "CUDA context and workspaces (assumed)" };
    for (name, bytes) in [
        (process, room.process),
        ("weights", fixed.weights),
        ("adapter", fixed.adapter),
        ("gradients", fixed.gradients),
        ("optimiser", fixed.optimiser),
        (reference(plan), fixed.reference),
    ] {
        row(name, bytes, bytes);
    }
    let (plain, recomputed) = (&plan.plain, &plan.recomputed);
    row(&format!("activations of {} rows", plan.pack.rows), plain.activations, recomputed.activations);
    row("LM head: its rows, one chunk of logits", plain.head, recomputed.head);
    row("buffers of the backward pass and the update", plain.buffers, recomputed.buffers);
    if plan.device == "cpu" {
        row("holes in the allocator's heap", room.holes(fixed, plain), room.holes(fixed, recomputed));
    }
    row("total", room.taken(fixed, plain), room.taken(fixed, recomputed));
    let header = format!("{:<52}{:>10}{:>13}\n", "GiB", "plain", "--recompute");
    let at = text.find("\n\n").map_or(0, |at| at + 2);
    text.insert_str(at, &header);
    text += &format!(
        "\n{:.1} GiB of memory ({}), {:.0} % of it planned with: at --pack-tokens {} {}, with --recompute {}.\n",
        room.memory / GIB,
        plan.memory_from,
        100.0 * PLANNED_SHARE,
        plan.pack_tokens,
        verdict(plan, plain),
        verdict(plan, recomputed)
    );
    text += &format!(
        "Largest --pack-tokens for sequences of {} tokens: {}; with --recompute: {}.\n",
        plan.max_length,
        budget(plan.largest_plain),
        budget(plan.largest_recomputed)
    );
    if plan.pack_tokens < pair_tokens(plan.max_length) {
        text += &format!(
            "A pair of {} tokens is larger than --pack-tokens and gets a pack to itself.\n",
            pair_tokens(plan.max_length)
        );
    }
    if plan.loading > room.taken(fixed, recomputed) {
        text += &format!(
            "While loading, {:.3} GiB are resident: the pages of the weights' files are among them, and can be given back.\n",
            plan.loading / GIB
        );
    }
    let gathered = room.while_gathered(fixed, recomputed);
    if gathered > 0.0 {
        text += &format!(
            "While all weights are gathered (validation, best/, the end) it is {:.3} GiB, which what fits leaves \
             room for.\n",
            gathered / GIB
        );
    }
    if plan.snapshot > 0.0 {
        let whose = if plan.device == "cpu" { ", which what fits leaves room for" } else { " of the host" };
        text += &format!(
            "A run that keeps checkpoints holds {:.3} GiB beside the total for their copies{whose}.\n",
            plan.snapshot / GIB
        );
    }
    if plan.gpus > 1 {
        let shared = match (plan.sharding.ranks > 1, plan.sharding.is_spread) {
            (false, _) => "an update's records are shared out, weights and optimiser are not",
            (true, false) => {
                "an update's records, gradients and the optimiser's state are shared out, the weights are not"
            }
            (true, true) => "an update's records, gradients, the optimiser's state and the weights are shared out",
        };
        text += &format!("{} devices, each as above: {shared}.\n", plan.gpus);
    }
    text.truncate(text.trim_end().len());
    text
}

/// Says that nothing fits, and what would help.
pub fn refusal(plan: &Plan) -> String {
    let smallest = pair_tokens(plan.max_length);
    let help = match plan.trained {
        Trained::Full if plan.fixed.reference > 0.0 => {
            "--no-reference where no update needs a KL, --method lora, a shorter --max-length, --dtype bf16, or a device \
             with more memory"
        }
        Trained::Full => "--method lora, a shorter --max-length, --dtype bf16, or a device with more memory",
        Trained::Lora => "a lower --lora-r, a shorter --max-length, --dtype bf16, or a device with more memory",
    };
    let more = match (plan.trained, plan.sharding.is_spread, plan.gpus) {
        (_, _, 1) => "",
        (Trained::Lora, ..) => "; more devices do not help, since each holds all weights",
        (Trained::Full, false, _) => "; or --shard-parameters",
        (Trained::Full, true, _) => "; or more devices",
    };
    format!(
        "{}: not even one pair of {smallest} tokens fits into {:.1} GiB with --recompute; what would help: {help}{more}",
        plan.model,
        plan.room.memory / GIB
    )
}

fn reference(plan: &Plan) -> &'static str {
    match (plan.trained, plan.fixed.reference > 0.0) {
        (Trained::Lora, _) => "reference (the same weights, adapter off)",
        (Trained::Full, true) => "reference: a frozen copy of the weights",
        (Trained::Full, false) => "reference (none)",
    }
}

fn verdict(plan: &Plan, work: &Work) -> &'static str {
    if plan.fits(work) { "fits" } else { "does not fit" }
}

fn budget(tokens: Option<usize>) -> String {
    match tokens {
        None => "none, not even one pair".to_owned(),
        Some(tokens) if tokens + STEP >= LARGEST => format!("{tokens} (no larger one is looked for)"),
        Some(tokens) => tokens.to_string(),
    }
}

fn millions(count: f64) -> String {
    if count < 1e9 { format!("{:.1} M", count / 1e6) } else { format!("{:.2} G", count / 1e9) }
}
