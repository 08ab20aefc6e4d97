//! Rounding of weights to integers with error feedback: what it yields.

pub mod int;
