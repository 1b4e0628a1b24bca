//! Which stage feeds which: a chain by default, any directed acyclic graph with skip connections.

use super::PlanError;

/// The stages of a model and the edges along which activations pass; gradients pass back along
/// the same edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageGraph {
    successors: Adjacency,
    predecessors: Adjacency,
    /// Stages in an order in which every edge points forward.
    order: Vec<u16>,
    chain: bool,
}

/// Lists of neighbours in one allocation: those of `s` are `items[start[s]..start[s + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Adjacency {
    start: Vec<u32>,
    items: Vec<u16>,
}

impl Adjacency {
    /// `pairs` sorted by the first element.
    fn new(stages: usize, pairs: &[(u16, u16)]) -> Self {
        let mut start = vec![0u32; stages + 1];
        for &(from, _) in pairs {
            start[usize::from(from) + 1] += 1;
        }
        for s in 0..stages {
            start[s + 1] += start[s];
        }
        Self {
            start,
            items: pairs.iter().map(|&(_, to)| to).collect(),
        }
    }

    fn of(&self, stage: usize) -> &[u16] {
        &self.items[self.start[stage] as usize..self.start[stage + 1] as usize]
    }
}

impl StageGraph {
    /// Stage 0 feeds stage 1, which feeds stage 2, and so on.
    pub fn chain(stages: u16) -> Self {
        let edges: Vec<_> = (1..stages).map(|s| (s - 1, s)).collect();
        let back: Vec<_> = (1..stages).map(|s| (s, s - 1)).collect();
        let n = usize::from(stages);
        Self {
            successors: Adjacency::new(n, &edges),
            predecessors: Adjacency::new(n, &back),
            order: (0..stages).collect(),
            chain: true,
        }
    }

    /// Stages joined by the given edges `(from, to)`, in any order.
    ///
    /// # Errors
    /// An edge names a stage that is not there, joins a stage to itself, is given twice, or closes
    /// a circle.
    pub fn new(stages: u16, edges: &[(u16, u16)]) -> Result<Self, PlanError> {
        let n = usize::from(stages);
        let mut edges = edges.to_vec();
        edges.sort_unstable();
        for (i, &(from, to)) in edges.iter().enumerate() {
            let fault = if from >= stages || to >= stages {
                "names a stage that is not there"
            } else if from == to {
                "joins a stage to itself"
            } else if i > 0 && edges[i - 1] == (from, to) {
                "is given twice"
            } else {
                continue;
            };
            return Err(PlanError::Edge { from, to, fault });
        }
        let mut back: Vec<_> = edges.iter().map(|&(from, to)| (to, from)).collect();
        back.sort_unstable();
        let successors = Adjacency::new(n, &edges);
        let predecessors = Adjacency::new(n, &back);

        // Kahn's algorithm: what is left over lies on or behind a circle.
        let mut waiting: Vec<usize> = (0..n).map(|s| predecessors.of(s).len()).collect();
        let mut order: Vec<u16> = (0..stages)
            .filter(|&s| waiting[usize::from(s)] == 0)
            .collect();
        let mut next = 0;
        while next < order.len() {
            for &to in successors.of(usize::from(order[next])) {
                waiting[usize::from(to)] -= 1;
                if waiting[usize::from(to)] == 0 {
                    order.push(to);
                }
            }
            next += 1;
        }
        if let Some(&(from, to)) = edges
            .iter()
            .find(|&&(from, to)| waiting[usize::from(from)] > 0 && waiting[usize::from(to)] > 0)
        {
            return Err(PlanError::Edge {
                from,
                to,
                fault: "closes a circle",
            });
        }
        let chain = edges.len() + 1 == n.max(1)
            && edges
                .iter()
                .enumerate()
                .all(|(i, &(from, to))| usize::from(from) == i && usize::from(to) == i + 1);
        Ok(Self {
            successors,
            predecessors,
            order,
            chain,
        })
    }

    /// The number of stages.
    pub fn stages(&self) -> usize {
        self.order.len()
    }

    /// Whether each stage feeds only the next.
    pub fn is_chain(&self) -> bool {
        self.chain
    }

    /// The stages that `stage` feeds, in ascending order.
    pub fn successors(&self, stage: usize) -> &[u16] {
        self.successors.of(stage)
    }

    /// The stages that feed `stage`, in ascending order.
    pub fn predecessors(&self, stage: usize) -> &[u16] {
        self.predecessors.of(stage)
    }

    /// The stages in an order in which every edge points forward.
    pub fn order(&self) -> &[u16] {
        &self.order
    }

    /// Every edge `(from, to)`, in ascending order.
    pub fn edges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        (0..self.stages()).flat_map(|from| {
            self.successors(from)
                .iter()
                .map(move |&to| (from, usize::from(to)))
        })
    }

    /// The number of the edge, counted as in [`StageGraph::edges`], if there is one.
    pub fn edge(&self, from: usize, to: usize) -> Option<usize> {
        if from >= self.stages() {
            return None;
        }
        let first = self.successors.start[from] as usize;
        let at = self
            .successors(from)
            .iter()
            .position(|&s| usize::from(s) == to)?;
        Some(first + at)
    }

    /// How many edges there are.
    pub fn edge_count(&self) -> usize {
        self.successors.items.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_written_as_edges_is_a_chain() {
        let written = StageGraph::new(4, &[(2, 3), (0, 1), (1, 2)]).unwrap();
        assert_eq!(written, StageGraph::chain(4));
        assert_eq!(StageGraph::new(1, &[]).unwrap(), StageGraph::chain(1));
    }

    #[test]
    fn skips_and_circles() {
        let graph = StageGraph::new(3, &[(0, 1), (1, 2), (0, 2)]).unwrap();
        assert!(!graph.is_chain());
        assert_eq!(graph.successors(0), [1, 2]);
        assert_eq!(graph.predecessors(2), [0, 1]);
        assert_eq!(graph.edge(0, 2), Some(1));
        assert_eq!(graph.edge(2, 0), None);
        for (edges, word) in [
            (vec![(0, 1), (1, 0)], "circle"),
            (vec![(0, 3)], "not there"),
            (vec![(1, 1)], "itself"),
            (vec![(0, 1), (0, 1)], "twice"),
        ] {
            let error = StageGraph::new(3, &edges).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
