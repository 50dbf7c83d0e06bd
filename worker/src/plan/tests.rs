use super::*;
use crate::model::lora::Module;
use crate::placement::Kernel;

/// A model of 2 layers, d = 8, 4 heads of 2, 2 key heads, f = 16, V = 100, tied, without norms after.
fn config() -> ModelConfig {
    let text = br#"{"model_type": "llama", "vocab_size": 100, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": true}"#;
    ModelConfig::parse(Path::new("config.json"), text).unwrap()
}

fn lora(targets: &[Module], dropout: f64) -> LoraConfig {
    LoraConfig { r: 2, alpha: 1.0, dropout, targets: targets.iter().copied().collect() }
}

fn setting<'a>(config: &'a ModelConfig, adapter: Option<&'a LoraConfig>, dtype: Kind, store: Kind) -> Setting<'a> {
    Setting {
        config,
        adapter,
        dtype,
        store,
        kernel: Kernel::Products,
        reorders_bf16: false,
        has_frozen_copy: false,
        sharding: Sharding::NONE,
    }
}

fn pack(rows: usize, blocks: &[usize]) -> PackShape {
    let blocks = blocks.iter().map(|&t| t as f64).collect();
    PackShape { rows: rows as f64, head_rows: 0.0, kl_rows: 0.0, blocks }
}

#[test]
fn fixed_parts_are_numbers_times_bytes() {
    let config = config();
    // Embedding, final norm, and a layer: two norms, q and o, k and v, three of the feed-forward layer.
    let parameters = 800.0 + 8.0 + 2.0 * (16.0 + 2.0 * 64.0 + 2.0 * 32.0 + 3.0 * 128.0);
    assert_eq!(memory::parameters(&config), parameters);

    let full = Fixed::of(&setting(&config, None, Kind::BFloat16, Kind::BFloat16));
    assert_eq!((full.weights, full.gradients), (2.0 * parameters, 2.0 * parameters));
    assert_eq!(full.optimiser, 12.0 * parameters, "two moments and a master");
    let wide = Fixed::of(&setting(&config, None, Kind::Float, Kind::Float));
    assert_eq!((wide.weights, wide.optimiser), (4.0 * parameters, 8.0 * parameters));
    // Where a processor computes bf16 weights as f32, they and their gradients are f32, and updates need masters.
    let held_wide = Fixed::of(&setting(&config, None, Kind::BFloat16, Kind::Float));
    assert_eq!(
        (held_wide.weights, held_wide.gradients, held_wide.optimiser),
        (4.0 * parameters, 4.0 * parameters, 12.0 * parameters)
    );

    let adapter = lora(&[Module::Q, Module::V], 0.0);
    let factors = 2.0 * 2.0 * ((8.0 + 8.0) + (8.0 + 4.0));
    assert_eq!(memory::adapter_parameters(&config, &adapter), factors);
    let low = Fixed::of(&setting(&config, Some(&adapter), Kind::BFloat16, Kind::BFloat16));
    assert_eq!((low.adapter, low.gradients, low.optimiser), (6.0 * factors, 4.0 * factors, 8.0 * factors));
    assert_eq!((low.weights, low.reference), (2.0 * parameters, 0.0), "the reference is the same weights");
    let copied = Setting { has_frozen_copy: true, ..setting(&config, None, Kind::Float, Kind::Float) };
    assert_eq!(Fixed::of(&copied).reference, 4.0 * parameters);
}

#[test]
fn ranks_share_out_what_all_weights_take() {
    let config = config();
    let parameters = memory::parameters(&config);
    let alone = Setting { has_frozen_copy: true, ..setting(&config, None, Kind::BFloat16, Kind::BFloat16) };
    let four = Setting { sharding: Sharding { ranks: 4, is_spread: false }, ..alone };
    let spread = Setting { sharding: Sharding { ranks: 4, is_spread: true }, ..alone };
    let fixed = |setting| {
        let Fixed { weights, gradients, optimiser, reference, .. } = Fixed::of(&setting);
        [weights, gradients, optimiser, reference].map(|bytes| bytes / parameters)
    };
    assert_eq!(fixed(alone), [2.0, 2.0, 12.0, 2.0]);
    // Sums of gradients are f32.
    assert_eq!(fixed(four), [2.0, 1.0, 3.0, 2.0]);
    assert_eq!(fixed(spread), [0.5, 1.0, 3.0, 0.5]);
    // All weights twice beside a rank's parts of weights, masters and moments.
    let gathered = |setting| Fixed::of(&setting).while_gathered().map(|bytes| bytes / parameters);
    assert_eq!([alone, four, spread].map(gathered), [None, None, Some(4.0 + 0.5 + 3.0 + 0.5)]);
    // A checkpoint copies weights, moments and masters, or a rank's part.
    assert_eq!([alone, four, spread].map(|setting| memory::snapshot(&setting) / parameters), [14.0, 3.5, 3.5]);
    let adapter = lora(&[Module::Q, Module::V], 0.0);
    let of_adapter = setting(&config, Some(&adapter), Kind::BFloat16, Kind::BFloat16);
    assert_eq!(memory::snapshot(&of_adapter), 12.0 * memory::adapter_parameters(&config, &adapter));
}

/// The shape of Llama 3.1 8B, all weights in bf16 with a frozen copy for the anchor, on four devices of 80 GB.
#[test]
fn eight_billion_weights_fit_four_devices_of_80_gb() {
    let config = ModelConfig {
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        tie_word_embeddings: false,
        ..config()
    };
    assert!((memory::parameters(&config) / 1e9 - 8.03).abs() < 0.01);
    let pack = PackShape::largest(2048, 1024, true);
    let room = Room { memory: 80e9, process: 0.75 * GIB, snapshot: 0.0, holes: Holes::NONE };
    let peak = |sharding| {
        let setting = Setting {
            has_frozen_copy: true,
            kernel: Kernel::Fused,
            sharding,
            ..setting(&config, None, Kind::BFloat16, Kind::BFloat16)
        };
        room.peak(&Fixed::of(&setting), &Work::of(&setting, &pack, true)) / 1e9
    };
    let (whole, shared, spread) =
        (Sharding::NONE, Sharding { ranks: 4, is_spread: false }, Sharding { ranks: 4, is_spread: true });
    println!("{:.1} {:.1} {:.1} GB", peak(whole), peak(shared), peak(spread));
    assert!(peak(whole) > 140.0, "one device cannot");
    assert!(peak(spread) < PLANNED_SHARE * 80.0, "when all weights are gathered, too");
    assert!(peak(spread) < peak(shared));
}

#[test]
fn an_update_is_counted_tensor_by_tensor() {
    let config = config();
    let adapter = lora(&[Module::Q, Module::V], 0.0);
    let setting = setting(&config, Some(&adapter), Kind::Float, Kind::Float);
    let pack = pack(10, &[6, 4]);
    // Of a layer: two norms with 1 / rms, the input of q and v, two low-rank products, q, k and v, four heads' scores,
    // three of the feed-forward layer.
    let layer = 4.0 * (10.0 * (2.0 * 9.0 + 8.0 + 4.0 + 8.0 + 8.0 + 48.0) + 4.0 * 52.0);
    // cos and sin, masks, indices; the final norm and its result.
    let shared = 4.0 * (10.0 * 4.0 + 52.0) + 480.0;
    let ends = 4.0 * 10.0 * (9.0 + 8.0);
    let first_norm = 4.0 * 10.0 * 9.0;
    let plain = Work::of(&setting, &pack, false);
    assert_eq!(plain.activations, shared + 2.0 * layer + ends - first_norm);
    // The inputs of two layers and of the final norm, a gradient, and one layer.
    let recomputed = Work::of(&setting, &pack, true);
    assert_eq!(recomputed.activations, shared + 4.0 * 10.0 * 8.0 * 4.0 + layer);
    assert!(recomputed.total() < plain.total());
}

#[test]
fn what_takes_more_is_counted_as_more() {
    let gemma = ModelConfig { attention_softcap: Some(50.0), norms_after: true, ..config() };
    let (plain, dropped) = (lora(&[Module::Q], 0.0), lora(&[Module::Q], 0.1));
    let all = lora(&Module::ALL, 0.0);
    let config = config();
    let of = |setting: Setting<'_>| Work::of(&setting, &pack(100, &[60, 40]), false).total();
    let base = of(setting(&config, Some(&plain), Kind::BFloat16, Kind::BFloat16));
    for (what, more) in [
        ("dropout", of(setting(&config, Some(&dropped), Kind::BFloat16, Kind::BFloat16))),
        ("all layers", of(setting(&config, Some(&all), Kind::BFloat16, Kind::BFloat16))),
        ("products in f32", of(setting(&config, Some(&plain), Kind::BFloat16, Kind::Float))),
        ("soft-caps and norms", of(setting(&gemma, Some(&plain), Kind::BFloat16, Kind::BFloat16))),
        ("all weights", of(setting(&config, None, Kind::BFloat16, Kind::BFloat16))),
    ] {
        assert!(more > base, "{what}: {more} against {base}");
    }
    let fused = Setting { kernel: Kernel::Fused, ..setting(&config, Some(&plain), Kind::Float, Kind::Float) };
    let written_out = Setting { kernel: Kernel::Products, ..fused };
    let long = pack(2000, &[2000]);
    assert!(Work::of(&fused, &long, false).total() < Work::of(&written_out, &long, false).total() / 2.0);
    let capped = Setting { config: &gemma, ..fused };
    let capped_written_out = Setting { config: &gemma, ..written_out };
    assert_eq!(
        Work::of(&capped, &long, false),
        Work::of(&capped_written_out, &long, false),
        "no kernel knows soft-caps"
    );
}

#[test]
fn the_largest_pack_has_whole_pairs_and_a_rest() {
    let pack = PackShape::largest(100, 20, true);
    assert_eq!(pack, PackShape { rows: 100.0, head_rows: 50.0, kl_rows: 50.0, blocks: vec![39.0, 39.0, 22.0] });
    let larger = PackShape::largest(10, 20, false);
    assert_eq!(larger, PackShape { rows: 39.0, head_rows: 39.0, kl_rows: 0.0, blocks: vec![39.0] });
}

#[test]
fn the_largest_budget_is_the_last_that_fits() {
    let config = config();
    let adapter = lora(&[Module::Q, Module::V], 0.0);
    let setting = setting(&config, Some(&adapter), Kind::Float, Kind::Float);
    let room = Room { memory: 4e6, process: 1e5, snapshot: 0.0, holes: Holes::HEAP };
    let taken = |budget, is_recomputed| {
        let work = Work::of(&setting, &PackShape::largest(budget, 20, true), is_recomputed);
        room.taken(&Fixed::of(&setting), &work)
    };
    for is_recomputed in [false, true] {
        let budget = room.largest_budget(&setting, 20, true, is_recomputed).unwrap();
        let limit = PLANNED_SHARE * room.memory;
        assert!(taken(budget, is_recomputed) <= limit && taken(budget + 64, is_recomputed) > limit, "{budget}");
    }
    assert!(room.largest_budget(&setting, 20, true, true) > room.largest_budget(&setting, 20, true, false));
    assert_eq!(Room { memory: 1.5e5, ..room }.largest_budget(&setting, 20, true, true), None);
    // A checkpoint's copy leaves less for the pack.
    let with_copy = Room { snapshot: 1e6, ..room }.largest_budget(&setting, 20, true, false);
    assert!(with_copy.is_some() && with_copy < room.largest_budget(&setting, 20, true, false));
    // A budget below a pair's tokens is one.
    let budget = Room { memory: 4e5, ..room }.largest_budget(&setting, 20, true, true).unwrap();
    assert!(budget >= 39, "{budget}");
}

#[test]
fn sizes_that_no_memory_holds_are_numbers_like_others() {
    let huge = ModelConfig { layers: 1 << 30, hidden_size: 1 << 30, vocab_size: 1 << 30, ..config() };
    let setting = setting(&huge, None, Kind::Float, Kind::Float);
    let room = Room { memory: 1e12, process: 0.0, snapshot: 0.0, holes: Holes::NONE };
    assert_eq!(room.largest_budget(&setting, 1 << 20, true, true), None);
    let work = Work::of(&setting, &PackShape::largest(fit::LARGEST, 1 << 40, true), false);
    assert!(work.total().is_finite() && work.buffers >= 0.0);
}
