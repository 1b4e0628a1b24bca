//! A whole plan: one list of actions per rank, and where the stages live.

use super::{Action, Kind, PlanError, StageGraph};

/// One list of actions per rank, the graph of stages, and the rank of each stage.
///
/// A schedule is plain data and need not be right: [`super::validate()`] says whether it is. It
/// prints as text and is read back from text, a line per rank; see [`super::text`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    graph: StageGraph,
    rank_of: Vec<u16>,
    microbatches: u16,
    ranks: Vec<Vec<Action>>,
}

impl Schedule {
    /// Puts a plan together.
    ///
    /// # Errors
    /// The placement must name a rank that exists for every stage of the graph, and every action a
    /// stage of the graph.
    pub fn new(
        graph: StageGraph,
        rank_of: Vec<u16>,
        microbatches: u16,
        ranks: Vec<Vec<Action>>,
    ) -> Result<Self, PlanError> {
        let wrong = |reason: String| Err(PlanError::Placement { reason });
        if ranks.len() > usize::from(u16::MAX) {
            return wrong(format!(
                "{} ranks are more than a plan can hold",
                ranks.len()
            ));
        }
        if rank_of.len() != graph.stages() {
            return wrong(format!(
                "{} stages, but {} ranks named",
                graph.stages(),
                rank_of.len()
            ));
        }
        if let Some(stage) = rank_of.iter().position(|&r| usize::from(r) >= ranks.len()) {
            let (rank, count) = (rank_of[stage], ranks.len());
            return wrong(format!("stage {stage} is on rank {rank}, of {count} ranks"));
        }
        for (rank, actions) in ranks.iter().enumerate() {
            let outside = |a: &&Action| a.stage() >= graph.stages() || a.peer() >= graph.stages();
            if let Some(action) = actions.iter().find(outside) {
                let stages = graph.stages();
                return wrong(format!(
                    "rank {rank} has {action}, but there are {stages} stages"
                ));
            }
        }
        Ok(Self {
            graph,
            rank_of,
            microbatches,
            ranks,
        })
    }

    /// The same order over another graph of as many stages, whose edges all point forward: a schedule that is right for a
    /// chain is right for it too, since it does a stage's forward after those of all earlier stages, and its backward after
    /// those of all later ones.
    ///
    /// # Errors
    /// Another number of stages, an edge that points back, and transfers that are written out already.
    pub fn over(&self, graph: StageGraph) -> Result<Self, PlanError> {
        let wrong = |reason: String| Err(PlanError::Placement { reason });
        if graph.stages() != self.stages() {
            let (ours, other) = (self.stages(), graph.stages());
            return wrong(format!(
                "the schedule has {ours} stages, and the graph {other}"
            ));
        }
        if let Some((from, to)) = graph.edges().find(|(from, to)| from > to) {
            return wrong(format!("the edge {from}>{to} points back"));
        }
        if let Some(action) = self.ranks.iter().flatten().find(|a| a.kind().is_transfer()) {
            return wrong(format!("its transfers are written out, such as {action}"));
        }
        let mut plan = self.clone();
        plan.graph = graph;
        Ok(plan)
    }

    /// The same stages and placement with other lists; the caller has checked that they fit.
    pub(crate) fn with_ranks(&self, ranks: Vec<Vec<Action>>) -> Self {
        debug_assert_eq!(ranks.len(), self.ranks.len());
        Self {
            graph: self.graph.clone(),
            rank_of: self.rank_of.clone(),
            microbatches: self.microbatches,
            ranks,
        }
    }

    /// A lowered plan in which these pairs of stages add up the gradients of the weights that they share: a `REDUCE_TIED`
    /// on both, in this order, behind all else. All ranks have one order, so none waits in a circle.
    ///
    /// ```
    /// use phalanx_parallel::pipeline::{Lowering, Schedule, lower};
    ///
    /// let plan: Schedule = "0F0, 0B0\n1F0, 1B0".parse()?;
    /// let tied = lower(&plan, &Lowering::default())?.with_tied(&[(0, 1)]);
    /// assert_eq!(
    ///     tied.to_string(),
    ///     "0F0, 0SEND_F0, 0RECV_B0, 0B0, 0REDUCE_GRAD, 0REDUCE_TIED>1\n\
    ///      1RECV_F0, 1F0, 1B0, 1SEND_B0, 1REDUCE_GRAD, 1REDUCE_TIED>0\n"
    /// );
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Panics
    /// One of the stages is none of the plan's.
    pub fn with_tied(&self, pairs: &[(usize, usize)]) -> Self {
        let mut ranks = self.ranks.clone();
        for &(a, b) in pairs {
            let action = Action::tied(a as u16, b as u16); // numbers of stages are u16
            ranks[self.rank_of(a)].push(action);
            if a != b {
                ranks[self.rank_of(b)].push(Action::tied(b as u16, a as u16));
            }
        }
        self.with_ranks(ranks)
    }

    /// The stages and their edges.
    pub fn graph(&self) -> &StageGraph {
        &self.graph
    }

    /// How many stages there are.
    pub fn stages(&self) -> usize {
        self.rank_of.len()
    }

    /// How many ranks there are.
    pub fn rank_count(&self) -> usize {
        self.ranks.len()
    }

    /// How many microbatches a step has.
    pub fn microbatches(&self) -> usize {
        usize::from(self.microbatches)
    }

    /// The rank that holds `stage`.
    pub fn rank_of(&self, stage: usize) -> usize {
        usize::from(self.rank_of[stage])
    }

    /// The rank of each stage.
    pub fn placement(&self) -> &[u16] {
        &self.rank_of
    }

    /// The stages that `rank` holds, in ascending order.
    pub fn stages_of(&self, rank: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.stages()).filter(move |&s| self.rank_of(s) == rank)
    }

    /// The actions of each rank, in the order in which it does them.
    pub fn ranks(&self) -> &[Vec<Action>] {
        &self.ranks
    }

    /// The lists, to be changed at will; nothing is checked until [`super::validate()`].
    pub fn ranks_mut(&mut self) -> &mut [Vec<Action>] {
        &mut self.ranks
    }

    /// How many actions there are in all.
    pub fn len(&self) -> usize {
        self.ranks.iter().map(Vec::len).sum()
    }

    /// Whether there is no action at all.
    pub fn is_empty(&self) -> bool {
        self.ranks.iter().all(Vec::is_empty)
    }

    /// Whether transfers are written out; if not, they are understood.
    pub fn has_transfers(&self) -> bool {
        self.ranks.iter().flatten().any(|a| a.kind().is_transfer())
    }

    /// Whether there is an action that is neither compute nor a transfer.
    pub(crate) fn has_collectives(&self) -> bool {
        let mut all = self.ranks.iter().flatten();
        all.any(|a| !a.kind().is_compute() && !a.kind().is_transfer())
    }

    /// The plan without all that is not compute.
    pub fn compute_only(&self) -> Self {
        let keep = |list: &Vec<Action>| {
            list.iter()
                .copied()
                .filter(|a| a.kind().is_compute())
                .collect()
        };
        self.with_ranks(self.ranks.iter().map(keep).collect())
    }

    /// The plan with every `B` written as `I` and then `W`.
    pub fn split_backward(&self) -> Self {
        let split = |list: &Vec<Action>| {
            let mut out = Vec::with_capacity(list.len());
            for &a in list {
                if a.kind() == Kind::Backward {
                    let (stage, mb) = (a.stage() as u16, a.microbatch() as u16);
                    out.push(Action::compute(Kind::Input, stage, mb));
                    out.push(Action::compute(Kind::Weight, stage, mb));
                } else {
                    out.push(a);
                }
            }
            out
        };
        self.with_ranks(self.ranks.iter().map(split).collect())
    }
}
