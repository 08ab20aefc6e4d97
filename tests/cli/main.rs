//! Tests that run the program as a user does.

#[path = "../common/mod.rs"]
mod common;

mod allocate;
mod awq;
mod back;
mod beside;
mod bytes;
mod calibration;
mod chat;
mod comparison_job;
mod convert;
mod edit;
mod eval;
mod experts;
mod feedback;
mod flags;
mod folder;
mod gptq;
#[cfg(feature = "hub")]
mod hub;
mod inputs;
mod instruction_sets;
mod job;
mod killed;
mod mixture;
mod packed_source;
mod plan_blueprints;
mod plan_sizes;
#[cfg(feature = "hub")]
mod push;
mod release;
mod rules;
#[cfg(feature = "hub")]
mod tls;
mod tune;
mod verify;
