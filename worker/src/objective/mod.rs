//! The objective: which term a record gets, its loss, and the gradient of a whole pack in closed form.

pub mod loss;
pub mod method;
pub mod promotions;
pub mod step;
pub mod term;
