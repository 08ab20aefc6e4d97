//! What the linear layers of a block have to do with each other: which read the same activations, who produces these,
//! which matrices engines run as one, and how a layer is split over devices. One table, [`INPUTS`]; every other answer
//! follows from it. It knows roles, not tensors, and holds no arithmetic.

use super::config::{Config, LayerConfig};
use super::family::{Dim, Family};
use super::role::Role;
use Role::*;

/// The steps of a block, in the order of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Qkv,
    AttnOutput,
    GateUp,
    Down,
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::Qkv, Stage::AttnOutput, Stage::GateUp, Stage::Down];

    /// The stage of a linear layer inside a block; `None` for anything else.
    pub fn of(role: Role) -> Option<Stage> {
        Some(INPUTS[input_of(role)?].stage)
    }
}

/// Which of the branches that a block adds up a linear layer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Attention, or the one feed-forward block of a layer: its last matrix is the last step of the branch.
    Dense,
    /// Every expert reads rows of its own.
    Experts,
    SharedExpert,
}

/// Activations that linear layers have as their common input.
#[derive(Debug)]
pub struct Input {
    pub stage: Stage,
    pub part: Part,
    /// Where they come from; the first that a layer has (in parallel blocks the feed-forward part may read the attention's
    /// norm). A norm, or a linear layer whose output channels enter linearly,
    /// so that a factor on such a channel can be undone in the readers' columns.
    pub from: &'static [Role],
    /// The linear layers that read them. Engines put their rows into one matrix.
    pub readers: &'static [Role],
    /// The matrix that holds the rows of all readers, in families that store one.
    pub whole: Option<Role>,
    /// Routers that read them too. They are never quantized, but factors have to be undone in them.
    pub routers: &'static [Role],
}

impl Input {
    /// All linear layers that may read it.
    pub fn linears(&self) -> impl Iterator<Item = Role> + use<> {
        self.readers.iter().copied().chain(self.whole)
    }

    /// Whether every expert reads rows of its own.
    pub fn per_expert(&self) -> bool {
        self.part == Part::Experts
    }
}

/// Every input of a block, in the order of the data.
pub static INPUTS: [Input; 8] = [
    Input {
        stage: Stage::Qkv,
        part: Part::Dense,
        from: &[AttnNorm],
        readers: &[AttnQ, AttnK, AttnV, MixerInput],
        whole: Some(AttnQkv),
        routers: &[],
    },
    Input {
        stage: Stage::AttnOutput,
        part: Part::Dense,
        from: &[AttnV, AttnQkv],
        readers: &[AttnOutput],
        whole: None,
        routers: &[],
    },
    Input {
        stage: Stage::GateUp,
        part: Part::Dense,
        from: &[FfnNorm, AttnNorm],
        readers: &[FfnGate, FfnUp],
        whole: Some(FfnGateUp),
        routers: &[],
    },
    Input {
        stage: Stage::GateUp,
        part: Part::Experts,
        from: &[FfnNorm, AttnNorm],
        readers: &[ExpertGate, ExpertUp],
        whole: None,
        routers: &[Router],
    },
    Input {
        stage: Stage::GateUp,
        part: Part::SharedExpert,
        from: &[FfnNorm, AttnNorm],
        readers: &[SharedGate, SharedUp],
        whole: None,
        routers: &[SharedRouter],
    },
    Input {
        stage: Stage::Down,
        part: Part::Dense,
        from: &[FfnUp, FfnGateUp],
        readers: &[FfnDown],
        whole: None,
        routers: &[],
    },
    Input {
        stage: Stage::Down,
        part: Part::Experts,
        from: &[ExpertUp],
        readers: &[ExpertDown],
        whole: None,
        routers: &[],
    },
    Input {
        stage: Stage::Down,
        part: Part::SharedExpert,
        from: &[SharedUp],
        readers: &[SharedDown],
        whole: None,
        routers: &[],
    },
];

/// The place in [`INPUTS`] of what a linear layer reads; `None` for roles that are no linear layer of a block.
pub fn input_of(role: Role) -> Option<usize> {
    INPUTS.iter().position(|input| input.linears().any(|r| r == role))
}

/// The linear layers, besides `role`, that share its input, `role` included, where there can be several.
fn siblings(role: Role) -> Option<usize> {
    let at = input_of(role)?;
    let input = &INPUTS[at];
    (input.readers.len() > 1 && input.readers.contains(&role)).then_some(at)
}

/// Of the linear layers with a common input, one stands for all where inputs are counted: the first, or the matrix that
/// holds them all. True for anything that is no such layer.
pub fn leads_input(role: Role) -> bool {
    let place = input_of(role).and_then(|at| INPUTS[at].readers.iter().position(|r| *r == role));
    place.unwrap_or(0) == 0
}

/// Linear layers that one kernel of an engine runs and that therefore must be stored alike: those whose rows it puts into
/// one matrix, and all matrices of all experts of a layer. Equal answers belong together; `None`: on its own.
pub fn stored_alike(role: Role) -> Option<usize> {
    let at = input_of(role)?;
    match INPUTS[at].per_expert() {
        true => INPUTS.iter().position(Input::per_expert),
        false => siblings(role),
    }
}

/// Linear layers that share one global scale: those whose rows an engine puts into one matrix, of one expert where there
/// are experts. Equal answers (of the same layer and expert) belong together; `None`: on its own.
pub fn shares_scale(role: Role) -> Option<usize> {
    siblings(role)
}

/// Which side of a matrix is split when a layer is split over devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shard {
    Rows,
    /// The input channels, whose partial sums are then added up.
    Columns,
}

/// How engines split a linear layer over devices: the last matrix of every branch by columns, all others by rows.
pub fn shards(role: Role) -> Shard {
    match Stage::of(role) {
        Some(Stage::AttnOutput | Stage::Down) => Shard::Columns,
        _ => Shard::Rows,
    }
}

/// The linear layers whose rows are the channels that the last matrix of a feed-forward branch reads: gate and up (in one
/// matrix, both halves) before down. Empty for other roles.
pub fn rows_before(down: Role) -> impl Iterator<Item = Role> {
    let input = input_of(down).map(|at| &INPUTS[at]).filter(|input| input.stage == Stage::Down);
    let before = input.and_then(|input| input_of(*input.from.first()?));
    before.into_iter().flat_map(|at| INPUTS[at].linears())
}

/// `from` produces what the linear layers and routers `into` read, so a factor on `from`'s output channels can be undone
/// in their input columns. Out of a fused matrix it is the last part that feeds: the value rows of [`Role::AttnQkv`], the
/// up rows of [`Role::FfnGateUp`]. With fewer key-value heads than heads, one value channel feeds several columns of the
/// attention output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    pub from: Role,
    pub into: Vec<Role>,
}

/// Who feeds whom among the tensors that `has` confirms, in the order of the data.
pub fn feeds(has: impl Fn(Role) -> bool) -> Vec<Feed> {
    let mut feeds: Vec<Feed> = Vec::new();
    for input in &INPUTS {
        let Some(from) = input.from.iter().copied().find(|r| has(*r)) else { continue };
        let readers = input.routers.iter().copied().chain(input.linears()).filter(|r| has(*r));
        match feeds.iter_mut().find(|f| f.from == from) {
            Some(feed) => feed.into.extend(readers),
            None => feeds.push(Feed { from, into: readers.collect() }),
        }
    }
    feeds.retain(|f| !f.into.is_empty());
    feeds
}

impl Family {
    /// Who feeds whom in models of this family that have all it may have.
    pub(crate) fn feeds(&self) -> Vec<Feed> {
        feeds(|role| self.has(role))
    }
}

/// How the columns of a reader follow from the channels of its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    Same,
    /// Grouped-query attention: `shared` heads of `dim` columns one after the other read the same value head.
    Heads {
        shared: usize,
        dim: usize,
    },
}

impl Columns {
    /// The channel that `column` of a consumer reads.
    pub fn channel(self, column: usize) -> usize {
        match self {
            Columns::Same => column,
            Columns::Heads { shared, dim } => column / dim / shared * dim + column % dim,
        }
    }

    /// Columns of a consumer of `channels` channels.
    pub fn count(self, channels: usize) -> usize {
        match self {
            Columns::Same => channels,
            Columns::Heads { shared, .. } => channels * shared,
        }
    }

    /// Factors per channel → factors per column.
    pub fn spread(self, factors: &[f32]) -> Vec<f32> {
        (0..self.count(factors.len())).map(|column| factors[self.channel(column)]).collect()
    }
}

/// The channels that a producer hands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    /// The first of its rows (of one expert) that is such a channel: not 0 where a matrix holds other rows before them.
    pub first_row: usize,
    pub count: usize,
    pub columns: Columns,
}

/// The rows of the part of a fused matrix that feeds, and of what lies before it.
fn last_part(whole: Role) -> Option<(&'static [Dim], Dim)> {
    match whole {
        AttnQkv => Some((&[Dim::Q, Dim::Kv], Dim::V)),
        FfnGateUp => Some((&[Dim::Ffn], Dim::Ffn)),
        _ => None,
    }
}

/// The channels of a producer `from` in a layer of a model of this family.
pub fn channels(family: &Family, config: &Config, layer: &LayerConfig, from: Role) -> Channels {
    let size = |dim: &Dim| dim.of(Some(layer), config);
    let (first_row, count) = match last_part(from) {
        Some((before, last)) => (before.iter().map(size).sum(), size(&last)),
        // The rows of one matrix, or the elements of a norm.
        None => {
            let shape = family.row(from).map_or(&[][..], |row| row.shape);
            let rows = if shape.len() > 1 { shape.get(shape.len() - 2) } else { shape.first() };
            (0, rows.map_or(0, size))
        }
    };
    let columns = match (from, layer.heads()) {
        (AttnV | AttnQkv, Some(h)) => Columns::Heads { shared: h.q / h.kv.max(1), dim: h.value_dim },
        _ => Columns::Same,
    };
    Channels { first_row, count, columns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::all;

    fn linears() -> impl Iterator<Item = (&'static Family, Role)> {
        all().flat_map(|f| f.rows().map(move |r| (f, r.role))).filter(|(_, r)| r.is_linear())
    }

    #[test]
    fn every_linear_layer_has_one_input_and_somebody_who_feeds_it() {
        for (family, role) in linears() {
            let reads = INPUTS.iter().filter(|input| input.linears().any(|r| r == role)).count();
            assert_eq!(reads, 1, "{role:?}");
            // Without norms before a part, it reads the residual stream, which nothing can be folded into.
            let reads_stream = !family.wiring.pre_norm && matches!(Stage::of(role), Some(Stage::Qkv | Stage::GateUp));
            let fed = family.feeds().iter().any(|f| f.into.contains(&role));
            assert_eq!(fed, !reads_stream, "{role:?} in {}", family.gguf);
        }
    }

    #[test]
    fn stages_and_parts_are_those_of_a_transformer_block() {
        for (_, role) in linears() {
            let expected = match role {
                AttnQ | AttnK | AttnV | AttnQkv => (Stage::Qkv, Part::Dense),
                AttnOutput => (Stage::AttnOutput, Part::Dense),
                FfnGate | FfnUp | FfnGateUp => (Stage::GateUp, Part::Dense),
                ExpertGate | ExpertUp => (Stage::GateUp, Part::Experts),
                SharedGate | SharedUp => (Stage::GateUp, Part::SharedExpert),
                FfnDown => (Stage::Down, Part::Dense),
                ExpertDown => (Stage::Down, Part::Experts),
                SharedDown => (Stage::Down, Part::SharedExpert),
                other => panic!("{other:?}"),
            };
            let input = &INPUTS[input_of(role).unwrap()];
            assert_eq!((input.stage, input.part), expected);
            assert_eq!(Stage::of(role), Some(expected.0));
        }
        assert_eq!(Stage::of(Router), None);
        assert_eq!(Stage::of(TokenEmbedding), None);
    }

    #[test]
    fn fused_sets() {
        for (_, a) in linears() {
            for (_, b) in linears().filter(|(_, b)| *b != a) {
                let set = |role| match role {
                    AttnQ | AttnK | AttnV => Some(0),
                    FfnGate | FfnUp => Some(1),
                    SharedGate | SharedUp => Some(2),
                    ExpertGate | ExpertUp | ExpertDown => Some(3),
                    _ => None,
                };
                let alike = set(a).is_some() && set(a) == set(b);
                assert_eq!(stored_alike(a).is_some() && stored_alike(a) == stored_alike(b), alike, "{a:?} {b:?}");
                let scale = alike && a != ExpertDown && b != ExpertDown;
                assert_eq!(shares_scale(a).is_some() && shares_scale(a) == shares_scale(b), scale, "{a:?} {b:?}");
            }
            let follows = matches!(a, AttnK | AttnV | FfnUp | ExpertUp | SharedUp);
            assert_eq!(leads_input(a), !follows, "{a:?}");
            let columns = matches!(a, AttnOutput | FfnDown | ExpertDown | SharedDown);
            assert_eq!(shards(a) == Shard::Columns, columns, "{a:?}");
        }
        assert!(shares_scale(AttnQkv).is_none() && stored_alike(FfnGateUp).is_none() && stored_alike(Output).is_none());
    }

    #[test]
    fn what_lies_before_down() {
        let before = |role| rows_before(role).collect::<Vec<_>>();
        assert_eq!(before(FfnDown), [FfnGate, FfnUp, FfnGateUp]);
        assert_eq!(before(ExpertDown), [ExpertGate, ExpertUp]);
        assert_eq!(before(SharedDown), [SharedGate, SharedUp]);
        assert!(before(AttnOutput).is_empty() && before(FfnUp).is_empty());
    }

    #[test]
    fn feeds_are_in_the_order_of_the_data() {
        let whole = feeds(|role| !matches!(role, AttnQkv | FfnGateUp | MixerInput));
        let expected: [(Role, &[Role]); 6] = [
            (AttnNorm, &[AttnQ, AttnK, AttnV]),
            (AttnV, &[AttnOutput]),
            (FfnNorm, &[FfnGate, FfnUp, Router, ExpertGate, ExpertUp, SharedRouter, SharedGate, SharedUp]),
            (FfnUp, &[FfnDown]),
            (ExpertUp, &[ExpertDown]),
            (SharedUp, &[SharedDown]),
        ];
        assert_eq!(whole, expected.map(|(from, into)| Feed { from, into: into.to_vec() }));
        let fused = crate::model::families::by_gguf("phi3").unwrap().feeds();
        let expected: [(Role, &[Role]); 4] =
            [(AttnNorm, &[AttnQkv]), (AttnQkv, &[AttnOutput]), (FfnNorm, &[FfnGateUp]), (FfnGateUp, &[FfnDown])];
        assert_eq!(fused, expected.map(|(from, into)| Feed { from, into: into.to_vec() }));
    }

    #[test]
    fn heads_that_share_a_value_head_share_its_channels() {
        // 6 heads of 4 columns over 2 value heads.
        let columns = Columns::Heads { shared: 3, dim: 4 };
        assert_eq!(columns.count(8), 24);
        let expected: Vec<usize> = [0, 0, 0, 1, 1, 1].iter().flat_map(|kv| (0..4).map(move |d| kv * 4 + d)).collect();
        assert_eq!((0..24).map(|c| columns.channel(c)).collect::<Vec<_>>(), expected);
    }
}
