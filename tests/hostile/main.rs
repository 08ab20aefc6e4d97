//! Input that is damaged or built to do harm, and places that cannot be written to. The allocator of this program counts
//! (see [`containers`]), so these tests stand apart.

#[path = "../common/mod.rs"]
mod common;

mod containers;
mod program;
mod seeds;
