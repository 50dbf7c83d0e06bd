//! The parameters of a decoder: what there is, under which names and in which order, whatever a parameter is kept as.
//!
//! A decoder has a tensor for each; a direction in the space of its weights (`weight_space.rs`) a tensor for those that move.

use std::collections::HashMap;

use super::config::ModelConfig;
use super::lora::Module;
use super::weights;

/// A linear layer's weight [out, in] and bias [out].
#[derive(Debug)]
pub struct Linear<T> {
    /// [out, in]
    pub weight: T,
    /// [out]
    pub bias: Option<T>,
}

/// One block; every norm is [d].
#[derive(Debug)]
pub struct Layer<T> {
    /// On the input of the attention.
    pub before_attention: T,
    /// On the attention's result.
    pub after_attention: Option<T>,
    /// On the input of the feed-forward layer.
    pub before_mlp: T,
    /// On the feed-forward layer's result.
    pub after_mlp: Option<T>,
    /// By `module as usize`.
    pub linears: [Linear<T>; 7],
}

impl<T> Layer<T> {
    /// Returns the norms besides the first, with the last part of their names.
    fn norms_after_linears(&self) -> impl Iterator<Item = (&'static str, &T)> {
        let norms: Vec<&T> = match &self.after_attention {
            Some(after_attention) => [after_attention, &self.before_mlp].into_iter().chain(&self.after_mlp).collect(),
            None => vec![&self.before_mlp],
        };
        weights::norms_after_linears(self.after_attention.is_some()).iter().copied().zip(norms)
    }
}

/// One value for every parameter of a decoder.
#[derive(Debug)]
pub struct Parameters<T> {
    /// [vocabulary, d]
    pub embed: T,
    /// In the order of computation.
    pub layers: Vec<Layer<T>>,
    /// The final norm: [d].
    pub norm: T,
    /// [vocabulary, d]; none where the embedding is the head too.
    pub head: Option<T>,
}

impl<T> Parameters<T> {
    /// Asks for the value of every parameter by its name in checkpoints.
    pub fn build(config: &ModelConfig, mut take: impl FnMut(&str) -> T) -> Self {
        let embed = take("model.embed_tokens.weight");
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            let mut at = |rest: &str| take(&format!("model.layers.{layer}.{rest}"));
            let before_attention = at("input_layernorm.weight");
            let post_attention = at("post_attention_layernorm.weight");
            let (after_attention, before_mlp, after_mlp) = if config.norms_after {
                let before_mlp = at("pre_feedforward_layernorm.weight");
                (Some(post_attention), before_mlp, Some(at("post_feedforward_layernorm.weight")))
            } else {
                (None, post_attention, None)
            };
            layers.push(Layer {
                before_attention,
                after_attention,
                before_mlp,
                after_mlp,
                linears: Module::ALL.map(|module| Linear {
                    weight: at(&format!("{}.weight", module.path())),
                    bias: weights::has_bias(config, module).then(|| at(&format!("{}.bias", module.path()))),
                }),
            });
        }
        let norm = take("model.norm.weight");
        let head = (!config.tie_word_embeddings).then(|| take("lm_head.weight"));
        Parameters { embed, layers, norm, head }
    }

    /// Returns every parameter with its name in checkpoints, in the order of [`weights::expected`].
    pub fn named(&self) -> Vec<(String, &T)> {
        let mut named = vec![("model.embed_tokens.weight".to_owned(), &self.embed)];
        for (i, layer) in self.layers.iter().enumerate() {
            let at = |rest: &str| format!("model.layers.{i}.{rest}");
            named.push((at("input_layernorm.weight"), &layer.before_attention));
            for module in Module::ALL {
                let linear = &layer.linears[module as usize];
                named.push((at(&format!("{}.weight", module.path())), &linear.weight));
                if let Some(bias) = &linear.bias {
                    named.push((at(&format!("{}.bias", module.path())), bias));
                }
            }
            for (name, norm) in layer.norms_after_linears() {
                named.push((at(&format!("{name}.weight")), norm));
            }
        }
        named.push(("model.norm.weight".to_owned(), &self.norm));
        if let Some(head) = &self.head {
            named.push(("lm_head.weight".to_owned(), head));
        }
        named
    }

    /// Makes a value from each parameter's name and value; `config` is that of the decoder.
    pub fn map<U>(&self, config: &ModelConfig, mut f: impl FnMut(&str, &T) -> U) -> Parameters<U> {
        let own: HashMap<String, &T> = self.named().into_iter().collect();
        Parameters::build(config, |name| f(name, own[name]))
    }

    /// Returns the LM head: its own parameter, or the embedding's.
    pub fn head(&self) -> &T {
        self.head.as_ref().unwrap_or(&self.embed)
    }
}
