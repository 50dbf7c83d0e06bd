//! How a variant is told from the others: a colour and a shape, the same in every plot and in the legend.

/// Colours for trained variants; the base model has a grey of its own, class `v0`.
const COLOURS: usize = 7;

/// The look of one variant. With 7 colours and 5 shapes, 35 variants differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::report) struct Style(usize);

impl Style {
    /// The base model, which all others are compared with.
    pub(in crate::report) const BASE: Style = Style(0);

    /// The trained variant at a place, from 0.
    pub(in crate::report) fn trained(place: usize) -> Self {
        Style(place + 1)
    }

    /// Returns the class that sets the colour: `v0` for the base, `v1` to `v7` for others.
    pub(in crate::report) fn class(self) -> String {
        match self.0 {
            0 => "v0".to_owned(),
            place => format!("v{}", (place - 1) % COLOURS + 1),
        }
    }

    /// Returns path commands that draw the shape around a point, about 9 units wide.
    pub(in crate::report) fn shape(self, (x, y): (f64, f64)) -> String {
        match self.0 % 5 {
            0 => format!("M{:.1} {y:.1}a4.3 4.3 0 1 0 8.6 0a4.3 4.3 0 1 0 -8.6 0z", x - 4.3),
            1 => format!("M{:.1} {:.1}h7.8v7.8h-7.8z", x - 3.9, y - 3.9),
            2 => format!("M{x:.1} {:.1}l5.2 9h-10.4z", y - 5.6),
            3 => format!("M{x:.1} {:.1}l5.4 5.4l-5.4 5.4l-5.4 -5.4z", y - 5.4),
            _ => format!("M{x:.1} {:.1}l-5.2 -9h10.4z", y + 5.6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirty_five_variants_differ_and_none_looks_like_the_base() {
        let look = |style: Style| (style.class(), style.shape((0.0, 0.0)));
        let mut looks: Vec<_> = (0..35).map(|place| look(Style::trained(place))).collect();
        looks.sort();
        looks.dedup();
        assert_eq!(looks.len(), 35);
        assert!(looks.iter().all(|(class, _)| *class != Style::BASE.class()));
    }
}
