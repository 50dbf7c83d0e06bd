//! AdamW with decoupled weight decay, and clipping by the global gradient norm.
//!
//! Owns the moments, so that they can be saved and restored to the bit. Moments and the arithmetic are f32; where the
//! trained weights are bf16, f32 master copies are kept here and the weights get their rounding.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// One trained tensor with its state.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    /// Gradient that was handed in; else the parameter's own.
    given: Option<Tensor>,
    /// f32 copy of a parameter that is stored in fewer bits.
    master: Option<Tensor>,
    first: Tensor,
    second: Tensor,
}

impl Slot {
    fn new(name: String, parameter: Tensor, rounded: bool) -> Slot {
        let state = || tch::no_grad(|| parameter.zeros_like().to_kind(Kind::Float).detach());
        let (first, second) = (state(), state());
        let narrow = rounded || parameter.kind() != Kind::Float;
        let master = narrow.then(|| tch::no_grad(|| parameter.detach().to_kind(Kind::Float).copy()));
        Slot { name, parameter, given: None, master, first, second }
    }

    fn gradient(&self) -> Option<Tensor> {
        let own = || Some(self.parameter.grad()).filter(Tensor::defined);
        self.given.as_ref().map(Tensor::shallow_clone).or_else(own)
    }
}

/// The optimiser of one run.
#[derive(Debug)]
pub struct AdamW {
    settings: AdamWSettings,
    slots: Vec<Slot>,
    /// Updates done, for the bias correction.
    pub step: u64,
}

impl AdamW {
    /// Starts with zero moments. `rounded` says that the parameters hold bf16 values whatever their storage, so that
    /// updates must be kept in f32 masters. The parameters are made to require gradients.
    pub fn new(settings: AdamWSettings, parameters: Vec<(String, Tensor)>, rounded: bool) -> Self {
        let slots = parameters
            .into_iter()
            .map(|(name, parameter)| Slot::new(name, parameter.set_requires_grad(true), rounded))
            .collect();
        AdamW { settings, slots, step: 0 }
    }

    /// As [`AdamW::new`] for parts of parameters, whose gradients are handed in.
    pub fn of_shares(settings: AdamWSettings, shares: Vec<(String, Tensor)>, rounded: bool) -> Self {
        let slots = shares.into_iter().map(|(name, share)| Slot::new(name, share, rounded)).collect();
        AdamW { settings, slots, step: 0 }
    }

    /// Hands gradients in, one a parameter in their order; none counts as 0.
    pub fn give_gradients(&mut self, gradients: Vec<Option<Tensor>>) {
        for (slot, gradient) in self.slots.iter_mut().zip(gradients) {
            slot.given = gradient;
        }
    }

    /// Returns what is kept of the parameter at a place, by kind: itself, its moments and its master.
    pub fn parts(&self, at: usize) -> Vec<(&'static str, Tensor)> {
        let slot = &self.slots[at];
        let kept = [("parameter", &slot.parameter), ("first", &slot.first), ("second", &slot.second)];
        kept.into_iter()
            .chain(slot.master.iter().map(|master| ("master", master)))
            .map(|(k, t)| (k, t.shallow_clone()))
            .collect()
    }

    /// Sets all gradients to zero.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.parameter.zero_grad();
        }
    }

    /// Returns all gradients end to end, in the parameters' order, as one row of f32 numbers on their device; 0 where no loss has
    /// reached a parameter.
    pub fn flat_gradients(&self) -> Tensor {
        let row = |slot: &Slot| match slot.gradient() {
            Some(gradient) => gradient.to_kind(Kind::Float).reshape([-1]),
            None => Tensor::zeros([slot.parameter.numel() as i64], (Kind::Float, slot.parameter.device())),
        };
        tch::no_grad(|| Tensor::cat(&self.slots.iter().map(row).collect::<Vec<_>>(), 0))
    }

    /// Replaces all gradients by numbers as [`AdamW::flat_gradients`] returns them.
    pub fn set_flat_gradients(&mut self, flat: &Tensor) {
        let mut from = 0;
        for slot in &mut self.slots {
            let numbers = slot.parameter.numel() as i64;
            let own = flat.narrow(0, from, numbers).view_as(&slot.parameter);
            from += numbers;
            if !slot.parameter.grad().defined() {
                // A parameter gets room for a gradient by a backward pass that says 0.
                (slot.parameter.to_kind(Kind::Float) * 0.0).sum(Kind::Float).backward();
            }
            let mut gradient = slot.parameter.grad();
            tch::no_grad(|| gradient.copy_(&own));
        }
    }

    /// Returns the norm of all gradients together. One device synchronisation.
    pub fn gradient_norm(&self) -> f64 {
        let squares: Vec<Tensor> = self
            .slots
            .iter()
            .filter_map(Slot::gradient)
            .map(|g| g.to_kind(Kind::Float).square().sum(Kind::Double))
            .collect();
        if squares.is_empty() { 0.0 } else { Tensor::stack(&squares, 0).sum(Kind::Double).double_value(&[]).sqrt() }
    }

    /// Does one update with gradients scaled by `factor` (the clip); those that were handed in are gone then. A parameter that no
    /// loss has reached yet has the gradient 0: a step without any loss must move by the moments alone, in a resumed run as in
    /// an undisturbed one.
    pub fn update(&mut self, learning_rate: f64, factor: f64) {
        self.step += 1;
        let AdamWSettings { beta1, beta2, epsilon, weight_decay } = self.settings;
        let correction1 = 1.0 - beta1.powi(self.step as i32);
        let correction2 = 1.0 - beta2.powi(self.step as i32);
        tch::no_grad(|| {
            for slot in &mut self.slots {
                let gradient = slot.gradient().unwrap_or_else(|| slot.first.zeros_like());
                slot.given = None;
                let gradient = gradient.to_kind(Kind::Float) * factor;
                let _ = slot.first.g_mul_scalar_(beta1).g_add_(&(&gradient * (1.0 - beta1)));
                let _ = slot.second.g_mul_scalar_(beta2).g_add_(&(gradient.square() * (1.0 - beta2)));
                let root = (&slot.second / correction2).sqrt() + epsilon;
                let step = &slot.first / root * (-learning_rate / correction1);
                let target = slot.master.as_mut().unwrap_or(&mut slot.parameter);
                if weight_decay != 0.0 {
                    let _ = target.g_mul_scalar_(1.0 - learning_rate * weight_decay);
                }
                let _ = target.g_add_(&step);
                if let Some(master) = &slot.master {
                    slot.parameter.copy_(&master.to_kind(Kind::BFloat16));
                }
            }
        });
    }

    /// Returns moments and masters by name.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut tensors = Vec::new();
        for slot in &self.slots {
            tensors.push((format!("first.{}", slot.name), slot.first.shallow_clone()));
            tensors.push((format!("second.{}", slot.name), slot.second.shallow_clone()));
            if let Some(master) = &slot.master {
                tensors.push((format!("master.{}", slot.name), master.shallow_clone()));
            }
        }
        tensors
    }

    /// Returns the trained tensors by name.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.slots.iter().map(|slot| (slot.name.clone(), slot.parameter.shallow_clone())).collect()
    }

    /// Restores parameters, moments and masters; `read` gets names and sizes, the names as used by [`AdamW::state`] and, prefixed with
    /// `parameter.`, by [`AdamW::parameters`].
    ///
    /// # Errors
    /// What `read` reports, or a shape that does not fit.
    pub fn restore(&mut self, step: u64, read: impl Fn(&str, &[i64]) -> Result<Tensor>) -> Result<()> {
        let take = |name: String, into: &mut Tensor| -> Result<()> {
            let stored = read(&name, &into.size())?;
            if stored.size() != into.size() {
                let (found, needed) = (stored.size(), into.size());
                return Err(Error::Config(format!("{name} in the checkpoint has shape {found:?}, not {needed:?}")));
            }
            tch::no_grad(|| into.copy_(&stored));
            Ok(())
        };
        for slot in &mut self.slots {
            take(format!("parameter.{}", slot.name), &mut slot.parameter)?;
            take(format!("first.{}", slot.name), &mut slot.first)?;
            take(format!("second.{}", slot.name), &mut slot.second)?;
            if let Some(master) = &mut slot.master {
                take(format!("master.{}", slot.name), master)?;
            }
        }
        self.step = step;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdamWSettings = AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };

    /// The update written out for one number.
    fn by_hand(mut x: f64, gradients: &[f64], lr: f64) -> f64 {
        let (mut m, mut v) = (0.0, 0.0);
        for (i, g) in gradients.iter().enumerate() {
            let t = i as i32 + 1;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            x *= 1.0 - lr * 0.1;
            x -= lr * (m / (1.0 - 0.9f64.powi(t))) / ((v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
        }
        x
    }

    #[test]
    fn follows_the_formula_and_restores_to_the_bit() {
        let x = Tensor::from_slice(&[1.5f32]);
        let mut adam = AdamW::new(SETTINGS, vec![("x".into(), x.shallow_clone())], false);
        let gradients = [0.3, -2.0, 0.7, 0.1];
        let mut saved = None;
        for (i, g) in gradients.iter().enumerate() {
            if i == 2 {
                let copy = |v: Vec<(String, Tensor)>| v.into_iter().map(|(n, t)| (n, t.copy())).collect::<Vec<_>>();
                let parameters: Vec<_> =
                    copy(adam.parameters()).into_iter().map(|(n, t)| (format!("parameter.{n}"), t)).collect();
                saved = Some(copy(adam.state()).into_iter().chain(parameters).collect::<Vec<_>>());
            }
            adam.zero_grad();
            (adam.parameters()[0].1.shallow_clone() * *g).sum(Kind::Float).backward();
            adam.update(0.01, 1.0);
        }
        let end = f64::try_from(&x).unwrap();
        assert!((end - by_hand(1.5, &gradients, 0.01)).abs() < 1e-6, "{end}");

        let y = Tensor::from_slice(&[0f32]);
        let mut again = AdamW::new(SETTINGS, vec![("x".into(), y.shallow_clone())], false);
        let saved = saved.unwrap();
        let read = |name: &str, _: &[i64]| Ok(saved.iter().find(|(n, _)| n == name).unwrap().1.copy());
        again.restore(2, read).unwrap();
        for g in &gradients[2..] {
            again.zero_grad();
            (again.parameters()[0].1.shallow_clone() * *g).sum(Kind::Float).backward();
            again.update(0.01, 1.0);
        }
        assert_eq!(x, y);
    }

    #[test]
    fn a_step_without_any_loss_is_the_same_before_and_after_a_restart() {
        let x = Tensor::from_slice(&[1.5f32]);
        let mut adam = AdamW::new(SETTINGS, vec![("x".into(), x.shallow_clone())], false);
        (adam.parameters()[0].1.shallow_clone() * 0.3).sum(Kind::Float).backward();
        adam.update(0.01, 1.0);
        let saved: Vec<(String, Tensor)> = adam.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
        let y = x.detach().copy();
        adam.zero_grad();
        adam.update(0.01, 1.0);

        let mut again = AdamW::new(SETTINGS, vec![("x".into(), y.shallow_clone())], false);
        let start = y.copy();
        let read =
            |name: &str, _: &[i64]| Ok(saved.iter().find(|(n, _)| n == name).map_or(start.copy(), |(_, t)| t.copy()));
        again.restore(1, read).unwrap();
        again.zero_grad();
        again.update(0.01, 1.0);
        assert_eq!(x, y);
        assert_ne!(y, start, "momentum moves it on");
    }
}
