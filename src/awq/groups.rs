//! Which channels can be scaled without changing the model: a producer (a norm, or a linear layer whose output enters
//! the next one linearly) and the linear layers that read its channels. Derived from the table of [`graph`]; holds no weights.

use crate::model::families::{Family, Role, Row};
pub use crate::model::graph::Columns;
use crate::model::graph::{self, Channels, Feed};
use crate::model::{Config, LayerConfig};

/// Channels that one factor each can be moved through: the producer's channels are divided by the factors, and the
/// columns of every consumer multiplied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub layer: usize,
    /// A norm, or the linear layer whose rows the channels are.
    pub from: Role,
    /// The bias of the producer where it has one: its elements are divided too.
    pub from_bias: Option<Role>,
    /// First row of the producer's tensor (all experts together) that is a channel of this group. Not 0 in fused
    /// matrices, and for experts after the first.
    pub first_row: usize,
    /// Rows of that tensor.
    pub from_rows: usize,
    /// The consumers that the model has.
    pub into: Vec<Role>,
    /// One expert's group, where the channels lie inside an expert.
    pub expert: Option<usize>,
    /// How many experts there are then; 1 otherwise.
    pub experts: usize,
    pub channels: usize,
    pub columns: Columns,
}

/// The groups of one layer in the order of the data flow of [`Family::feeds`].
pub fn groups(family: &Family, config: &Config, layer: usize) -> Vec<Group> {
    let Some(block) = config.layers.get(layer) else { return Vec::new() };
    let feeds = graph::feeds(|role| family.layer_has(role, block, config));
    feeds.iter().flat_map(|feed| groups_of(family, config, layer, block, feed)).collect()
}

fn groups_of(family: &Family, config: &Config, layer: usize, block: &LayerConfig, feed: &Feed) -> Vec<Group> {
    let has = |role: Role| family.layer_has(role, block, config);
    let Channels { first_row, count: channels, columns } = graph::channels(family, config, block, feed.from);
    let group = Group {
        layer,
        from: feed.from,
        from_bias: feed.from.bias().filter(|role| has(*role)),
        first_row,
        from_rows: family.row(feed.from).map_or(0, |row| rows(row, block, config)),
        into: feed.into.clone(),
        expert: None,
        experts: 1,
        channels,
        columns,
    };
    if !feed.from.is_expert() {
        return vec![group];
    }
    let count = block.ffn.experts.as_ref().map_or(0, |e| e.count);
    (0..count).map(|e| Group { expert: Some(e), experts: count, first_row: e * channels, ..group.clone() }).collect()
}

/// Rows of a tensor, those of all experts together; elements of a vector.
fn rows(row: &Row, block: &LayerConfig, config: &Config) -> usize {
    let outer = &row.shape[..row.shape.len().saturating_sub(1).max(1)];
    outer.iter().map(|dim| dim.of(Some(block), config)).product()
}
