//! The report's plots: small pure functions, figures in, one inline SVG out.
//!
//! All are drawn 340 units wide with text of 14 units, so that they fill a phone at their natural size; a wider page sets
//! them side by side instead of enlarging them. Colours are classes that the page's style sheet defines for light and dark.
//! Variants are told apart by shape as well as by colour.

mod axis;
pub(super) mod bars;
pub(super) mod dots;
pub(super) mod histogram;
pub(super) mod lines;
pub(super) mod mark;
mod svg;

/// What a plot is called: a prefix for its ids, unique on the page, its title, and what it shows in a sentence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) id: &'a str,
    pub(super) title: &'a str,
    pub(super) description: &'a str,
}
