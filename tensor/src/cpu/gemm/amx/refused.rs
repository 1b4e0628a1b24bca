//! Tiles of the result that the unit cannot compute, gathered into rectangles. Pure.

use std::ops::Range;

/// A rectangle of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Area {
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

/// Joins areas of a grid that touch: along rows, then those of the same columns. The result does
/// not depend on the order. In place, for there may be no memory.
pub(super) fn gather(mut areas: Vec<Area>) -> Vec<Area> {
    areas.sort_unstable_by_key(|a| (a.rows.start, a.cols.start));
    areas.dedup_by(|area, last| {
        let joins = last.rows == area.rows && last.cols.end == area.cols.start;
        if joins {
            last.cols.end = area.cols.end;
        }
        joins
    });
    areas.sort_unstable_by_key(|a| (a.cols.start, a.cols.end, a.rows.start));
    areas.dedup_by(|run, last| {
        let joins = last.cols == run.cols && last.rows.end == run.rows.start;
        if joins {
            last.rows.end = run.rows.end;
        }
        joins
    });
    areas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tile_once_in_few_areas() {
        // A cross: the third row and the second column of a 5 x 4 grid.
        let tile = |i: usize, j: usize| Area {
            rows: i * 8..(i + 1) * 8,
            cols: j * 8..(j + 1) * 8,
        };
        let cross = |(i, j): &(usize, usize)| *i == 2 || *j == 1;
        let grid = || (0..5).flat_map(|i| (0..4).map(move |j| (i, j)));
        let tiles = grid().filter(cross).map(|(i, j)| tile(i, j));
        let areas = gather(tiles.rev().collect());
        assert_eq!(areas.len(), 3, "{areas:?}");
        for (i, j) in grid() {
            let hits = areas
                .iter()
                .filter(|a| a.rows.contains(&(i * 8)) && a.cols.contains(&(j * 8)))
                .count();
            assert_eq!(hits, usize::from(cross(&(i, j))), "{i} {j}");
        }
        let all = grid().map(|(i, j)| tile(i, j));
        assert_eq!(gather(all.rev().collect()).len(), 1);
    }
}
