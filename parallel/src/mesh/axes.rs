//! [`Axes`]: which place a rank has in a mesh, and with whom it shares a group. Pure.

use super::MeshError;
use std::collections::HashSet;
use std::fmt;

/// The axes of a mesh: names and sizes, all names different and no size 0. Places are numbered in row-major order: the
/// last axis varies fastest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Axes(Vec<(String, usize)>);

impl Axes {
    /// Axes that have a place for each of so many ranks.
    pub(crate) fn new(axes: Vec<(String, usize)>, ranks: usize) -> Result<Axes, MeshError> {
        let axes = Axes(axes);
        if axes.0.is_empty() {
            return Err(MeshError::NoAxes);
        }
        let text = || axes.to_string();
        let mut seen = HashSet::new();
        for (place, (axis, size)) in axes.0.iter().enumerate() {
            let (axes, axis) = (text, || axis.clone());
            if axis().is_empty() {
                return Err(MeshError::NoName {
                    axes: axes(),
                    place,
                });
            }
            if *size == 0 {
                return Err(MeshError::ZeroSize {
                    axes: axes(),
                    axis: axis(),
                });
            }
            if !seen.insert(axis()) {
                return Err(MeshError::SameName {
                    axes: axes(),
                    axis: axis(),
                });
            }
        }
        let sizes: Vec<usize> = axes.0.iter().map(|(_, size)| *size).collect();
        let places = sizes
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size));
        if places != Some(ranks) {
            return Err(MeshError::WrongSize {
                axes: text(),
                sizes,
                ranks,
            });
        }
        Ok(axes)
    }

    /// The names, outermost axis first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn size(&self, axis: usize) -> usize {
        self.0[axis].1
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> usize {
        self.0.iter().map(|(_, size)| size).product()
    }

    /// Which axis has this name.
    pub(crate) fn find(&self, axis: &str) -> Result<usize, MeshError> {
        let found = self.names().position(|name| name == axis);
        found.ok_or_else(|| MeshError::UnknownAxis {
            axis: axis.to_owned(),
            axes: self.to_string(),
        })
    }

    /// Which axes have these names, in the order of the mesh.
    pub(crate) fn find_all(&self, axes: &[&str]) -> Result<Vec<usize>, MeshError> {
        let mut found = Vec::with_capacity(axes.len());
        for axis in axes {
            let at = self.find(axis)?;
            if found.contains(&at) {
                return Err(MeshError::NamedTwice {
                    axis: (*axis).to_owned(),
                    axes: self.to_string(),
                });
            }
            found.push(at);
        }
        if found.is_empty() {
            return Err(MeshError::NoneNamed {
                axes: self.to_string(),
            });
        }
        found.sort_unstable();
        Ok(found)
    }

    /// How many places apart neighbours along an axis are.
    fn stride(&self, axis: usize) -> usize {
        self.0[axis + 1..].iter().map(|(_, size)| size).product()
    }

    /// Where along an axis a place is.
    pub(crate) fn coordinate(&self, place: usize, axis: usize) -> usize {
        place / self.stride(axis) % self.size(axis)
    }

    /// The number of the group over these axes that a place belongs to: its number among the groups, which are
    /// ordered by the coordinates along the other axes.
    pub(crate) fn color(&self, place: usize, over: &[usize]) -> usize {
        let others = (0..self.count()).filter(|axis| !over.contains(axis));
        others.fold(0, |color, axis| {
            color * self.size(axis) + self.coordinate(place, axis)
        })
    }

    /// How many places share a group over these axes.
    pub(crate) fn group_size(&self, over: &[usize]) -> usize {
        over.iter().map(|&axis| self.size(axis)).product()
    }
}

/// `data 2 × tensor 4`.
impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, size)) in self.0.iter().enumerate() {
            let times = if i == 0 { "" } else { " × " };
            write!(f, "{times}{name} {size}")?;
        }
        Ok(())
    }
}

/// The ranks at all places as a table: a row for each place along all axes but the last one, and a column for each
/// place along that.
pub(crate) fn table(axes: &Axes, ranks: &[usize], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let last = axes.count() - 1;
    let width = |title: &str, most: usize| title.chars().count().max(most.to_string().len());
    let names: Vec<&str> = axes.names().collect();
    let most = ranks.iter().copied().max().unwrap_or(0);
    let rows: Vec<usize> = (0..last).map(|a| width(names[a], axes.size(a))).collect();
    let columns: Vec<String> = (0..axes.size(last))
        .map(|at| {
            let title = format!("{} {at}", names[last]);
            let width = width(&title, most);
            format!("{title:>width$}")
        })
        .collect();
    for (name, width) in names.iter().zip(&rows) {
        write!(f, "{name:>width$}  ")?;
    }
    write!(f, "{}", columns.join("  "))?;
    for (row, ranks) in ranks.chunks(axes.size(last)).enumerate() {
        writeln!(f)?;
        let place = row * axes.size(last);
        for (axis, width) in rows.iter().enumerate() {
            write!(f, "{:>width$}  ", axes.coordinate(place, axis))?;
        }
        let cells = ranks.iter().zip(&columns).map(|(rank, column)| {
            let width = width(column, most);
            format!("{rank:>width$}")
        });
        write!(f, "{}", cells.collect::<Vec<_>>().join("  "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn axes(axes: &[(&str, usize)], ranks: usize) -> Result<Axes, MeshError> {
        let axes = axes.iter().map(|(name, size)| ((*name).to_owned(), *size));
        Axes::new(axes.collect(), ranks)
    }

    #[test]
    fn what_is_no_mesh_is_answered_by_a_sentence() {
        const LARGE: usize = usize::MAX / 2;
        type Sizes<'a> = &'a [(&'a str, usize)];
        let cases: &[(Sizes<'_>, usize, &str)] = &[
            (
                &[("data", 2), ("pipe", 2), ("tensor", 2)],
                6,
                "a mesh of data 2 × pipe 2 × tensor 2: 2 × 2 × 2 = 8 places, but the group has 6 ranks",
            ),
            (
                &[("data", 2)],
                1,
                "a mesh of data 2: 2 places, but the group has 1 rank",
            ),
            (
                &[("data", 1), ("pipe", 1)],
                2,
                "a mesh of data 1 × pipe 1: 1 × 1 = 1 place, but the group has 2 ranks",
            ),
            (
                &[("data", LARGE), ("pipe", 3)],
                2,
                "= too many places to count, but the group has 2 ranks",
            ),
            (&[], 1, "a mesh has at least one axis"),
            (
                &[("data", 2), ("pipe", 0)],
                2,
                "a mesh of data 2 × pipe 0: the size of `pipe` is 0, and must be at least 1",
            ),
            (
                &[("data", 2), ("", 1)],
                2,
                "a mesh of data 2 ×  1: axis 1 has no name",
            ),
            (
                &[("data", 2), ("pipe", 1), ("data", 1)],
                2,
                "a mesh of data 2 × pipe 1 × data 1: two axes are called `data`",
            ),
        ];
        for (sizes, ranks, sentence) in cases {
            let error = axes(sizes, *ranks).unwrap_err().to_string();
            assert!(error.ends_with(sentence), "{error}");
        }
    }

    #[test]
    fn axes_that_are_not_there_are_answered_with_those_that_are() {
        let axes = axes(&[("data", 2), ("pipe", 3)], 6).unwrap();
        let cases: [(&[&str], &str); 3] = [
            (
                &["pipe", "model"],
                "there is no axis `model`; the mesh has data 2 × pipe 3",
            ),
            (
                &["pipe", "pipe"],
                "the axis `pipe` is named twice; the mesh has data 2 × pipe 3",
            ),
            (
                &[],
                "a group goes over at least one axis; the mesh has data 2 × pipe 3",
            ),
        ];
        for (names, sentence) in cases {
            assert_eq!(axes.find_all(names).unwrap_err().to_string(), sentence);
        }
        assert_eq!(axes.find_all(&["pipe", "data"]).unwrap(), [0, 1]);
    }

    #[test]
    fn the_last_axis_varies_fastest() {
        let axes = axes(&[("data", 2), ("pipe", 2), ("tensor", 2)], 8).unwrap();
        let along = |axis| (0..8).map(|p| axes.coordinate(p, axis)).collect::<Vec<_>>();
        assert_eq!(along(0), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(along(1), [0, 0, 1, 1, 0, 0, 1, 1]);
        assert_eq!(along(2), [0, 1, 0, 1, 0, 1, 0, 1]);
        let colors = |over: &[usize]| (0..8).map(|p| axes.color(p, over)).collect::<Vec<_>>();
        assert_eq!(colors(&[0]), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(colors(&[1]), [0, 1, 0, 1, 2, 3, 2, 3]);
        assert_eq!(colors(&[2]), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(colors(&[0, 2]), [0, 0, 1, 1, 0, 0, 1, 1]);
    }

    #[test]
    fn a_table_has_a_row_for_all_axes_but_the_last() {
        struct Table(Axes, Vec<usize>);
        impl fmt::Display for Table {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                table(&self.0, &self.1, f)
            }
        }
        let cube = axes(&[("data", 2), ("pipe", 2), ("tensor", 2)], 8).unwrap();
        let ranks = vec![0, 1, 2, 3, 4, 5, 6, 70];
        let text = Table(cube, ranks).to_string();
        let expected = "\
data  pipe  tensor 0  tensor 1
   0     0         0         1
   0     1         2         3
   1     0         4         5
   1     1         6        70";
        assert_eq!(text, expected);
        let line = axes(&[("d", 3)], 3).unwrap();
        let text = Table(line, vec![1000, 7, 8]).to_string();
        assert_eq!(text, " d 0   d 1   d 2\n1000     7     8");
    }

    proptest! {
        /// Along whatever axes, each place is in exactly one group, the groups are of one size, and in one of them two
        /// places differ in these axes alone.
        #[test]
        fn places_are_shared_out_over_groups(
            sizes in prop::collection::vec(1usize..5, 1..5),
            chosen in prop::collection::vec(any::<bool>(), 4),
        ) {
            let ranks: usize = sizes.iter().product();
            let named = sizes.iter().enumerate().map(|(i, &size)| (i.to_string(), size));
            let axes = Axes::new(named.collect(), ranks).unwrap();
            prop_assert_eq!(axes.places(), ranks);
            let over: Vec<usize> = (0..sizes.len()).filter(|&a| chosen[a]).collect();
            let size = axes.group_size(&over);
            let mut members = vec![Vec::new(); ranks / size];
            for place in 0..ranks {
                // A color beyond the number of groups would be out of bounds.
                members[axes.color(place, &over)].push(place);
            }
            for group in &members {
                prop_assert_eq!(group.len(), size);
                for (axis, &size) in sizes.iter().enumerate() {
                    let along: HashSet<usize> = group.iter().map(|&p| axes.coordinate(p, axis)).collect();
                    let expected = if over.contains(&axis) { size } else { 1 };
                    prop_assert_eq!(along.len(), expected);
                }
                // Ranks of one color stand in ascending order, which is that of the coordinates.
                let within: Vec<Vec<usize>> = group
                    .iter()
                    .map(|&p| over.iter().map(|&a| axes.coordinate(p, a)).collect())
                    .collect();
                prop_assert!(within.is_sorted());
            }
            // Back from coordinates to the place.
            for place in 0..ranks {
                let back = (0..sizes.len()).fold(0, |n, a| n * sizes[a] + axes.coordinate(place, a));
                prop_assert_eq!(back, place);
            }
        }
    }
}
