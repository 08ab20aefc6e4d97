//! Which channels can be scaled without changing the model: a producer (a norm, or a linear layer whose output enters
//! the next one linearly) and the linear layers that read its channels. Derived from [`Family::feeds`]; holds no weights.

use crate::model::Config;
use crate::model::families::{Family, Feed, Role, Row};

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

/// Which channel a consumer's column reads.
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

/// The groups of one layer in the order of the data flow of [`Family::feeds`].
pub fn groups(family: &Family, config: &Config, layer: usize) -> Vec<Group> {
    family.feeds.iter().flat_map(|feed| groups_of(family, config, layer, feed)).collect()
}

fn groups_of(family: &Family, config: &Config, layer: usize, feed: &Feed) -> Vec<Group> {
    let has = |role: Role| family.row(role).is_some_and(|row| row.when.holds(config));
    let into: Vec<Role> = feed.into.iter().copied().filter(|role| has(*role)).collect();
    if !has(feed.from) || into.is_empty() {
        return Vec::new();
    }
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let experts = config.experts.as_ref();
    let (first_row, channels) = match feed.from {
        Role::AttnV => (0, kv),
        Role::AttnQkv => (q + kv, kv),
        Role::FfnUp => (0, config.ffn),
        Role::FfnGateUp => (config.ffn, config.ffn),
        Role::ExpertUp => (0, experts.map_or(0, |e| e.ffn)),
        Role::SharedUp => (0, experts.and_then(|e| e.shared_ffn).unwrap_or(0)),
        _ => (0, config.hidden),
    };
    let columns = match feed.from {
        Role::AttnV | Role::AttnQkv => {
            Columns::Heads { shared: config.heads / config.kv_heads.max(1), dim: config.head_dim }
        }
        _ => Columns::Same,
    };
    let from_bias = match feed.from {
        Role::AttnV => Some(Role::AttnVBias),
        Role::FfnUp => Some(Role::FfnUpBias),
        _ => None,
    };
    let group = Group {
        layer,
        from: feed.from,
        from_bias: from_bias.filter(|role| has(*role)),
        first_row,
        from_rows: family.row(feed.from).map_or(0, |row| rows(row, config)),
        into,
        expert: None,
        experts: 1,
        channels,
        columns,
    };
    if feed.from != Role::ExpertUp {
        return vec![group];
    }
    let count = experts.map_or(0, |e| e.count);
    (0..count).map(|e| Group { expert: Some(e), experts: count, first_row: e * channels, ..group.clone() }).collect()
}

/// Rows of a tensor, those of all experts together; elements of a vector.
fn rows(row: &Row, config: &Config) -> usize {
    let outer = &row.shape[..row.shape.len().saturating_sub(1).max(1)];
    outer.iter().map(|dim| dim.of(config)).product()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_share_a_value_head_share_its_channels() {
        // 6 heads of 4 columns over 2 value heads.
        let columns = Columns::Heads { shared: 3, dim: 4 };
        assert_eq!(columns.count(8), 24);
        let expected: Vec<usize> = [0, 0, 0, 1, 1, 1].iter().flat_map(|kv| (0..4).map(move |d| kv * 4 + d)).collect();
        assert_eq!((0..24).map(|c| columns.channel(c)).collect::<Vec<_>>(), expected);
    }
}
