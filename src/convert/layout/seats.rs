//! Under which name each module lies in the folder. mlx-lm has experts in stacks, one per projection, and some modules under
//! names of its own; all other engines have the checkpoint's names.

use crate::model::modules::Module;
use crate::packed::engines::MlxNames;
use serde_json::Value;
use std::collections::HashMap;

/// Where a module lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The name without a suffix.
    pub path: String,
    /// Its place in the stack of this name, and how many the stack holds; `None`: it has the name alone.
    pub part: Option<(usize, usize)>,
}

impl Seat {
    fn alone(path: String) -> Self {
        Self { path, part: None }
    }

    /// The place in its tensors, and how many lie there.
    pub fn place(&self) -> (usize, usize) {
        self.part.unwrap_or((0, 1))
    }

    /// Whether a tensor begins with this module.
    pub fn is_first(&self) -> bool {
        self.place().0 == 0
    }

    /// The shape of a tensor that holds so much of each module.
    pub fn shape(&self, own: Vec<usize>) -> Vec<usize> {
        self.part.map_or(own.clone(), |(_, count)| [vec![count], own].concat())
    }
}

/// The seats of modules in a folder under the checkpoint's own names.
pub fn own(modules: &[Module]) -> Vec<Seat> {
    modules.iter().map(|m| Seat::alone(m.path.clone())).collect()
}

/// The seats in a folder for mlx-lm. A stack that is not whole, or of unequal matrices, is none.
pub fn of_mlx(modules: &[Module], config: &Value) -> Vec<Seat> {
    let Some(names) = MlxNames::of(config) else { return own(modules) };
    let stacks: Vec<_> = modules.iter().map(|m| names.stack(&m.path)).collect();
    let mut held: HashMap<&str, Vec<(usize, &Module)>> = HashMap::new();
    for (stack, module) in stacks.iter().zip(modules) {
        if let Some((path, expert)) = stack {
            held.entry(path).or_default().push((*expert, module));
        }
    }
    let is_whole = |(path, inside): (&&str, &mut Vec<(usize, &Module)>)| {
        inside.sort_by_key(|(expert, _)| *expert);
        let first = inside.first()?.1;
        let alike = |m: &Module| (m.rows, m.cols, m.layer) == (first.rows, first.cols, first.layer);
        let whole = inside.iter().enumerate().all(|(i, (expert, m))| i == *expert && alike(m));
        whole.then_some((path.to_string(), inside.len()))
    };
    let whole: HashMap<String, usize> = held.iter_mut().filter_map(is_whole).collect();
    let seat = |(stack, module): (&Option<(String, usize)>, &Module)| match stack {
        Some((path, expert)) if whole.contains_key(path) => {
            Seat { path: path.clone(), part: Some((*expert, whole[path])) }
        }
        Some(_) => Seat::alone(module.path.clone()),
        None => Seat::alone(names.name(&module.path)),
    };
    stacks.iter().zip(modules).map(seat).collect()
}
