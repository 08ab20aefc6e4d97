//! `quantize job`: a conversion or a comparison in tasks, over a folder that all machines see.

use super::args::{CommonArgs, Format, ResultArgs};
use super::commands::{CompareArgs, ConvertArgs};
use super::output::{print, print_json};
use super::prepare::{Prepared, accept, prepare};
use super::progress::Terminal;
use super::tasks::Opened;
use super::values::size;
use super::{convert, emit, eval, idle, interrupt, options, recipe};
use crate::control::{Control, Run};
use crate::convert::job::{self, Job, Phase, State, Task, Tasks};
use crate::writer::gguf::human;
use crate::{Error, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Args)]
pub struct JobArgs {
    #[command(subcommand)]
    command: JobCommand,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Cut a conversion into tasks, and write them into a folder that all machines see
    Plan(Box<JobPlanArgs>),
    /// Cut a comparison into tasks, each of some windows of the text
    Compare(Box<JobCompareArgs>),
    /// Do one task, some of them, or all, one after the other; those that are done already are passed over
    Run(JobRunArgs),
    /// Say which tasks are done
    Status(JobStatusArgs),
    /// Put what the tasks have made together, check it, and give it its name; of a comparison, make the report
    Assemble(AssembleArgs),
    /// Print the script or manifest that has an engine run the tasks
    Emit(emit::EmitArgs),
}

#[derive(Debug, Args)]
#[command(mut_arg("report", |a| a.hide(true)), mut_arg("modelfile", |a| a.hide(true)), mut_arg("save_imatrix", |a| a.hide(true)),
          mut_arg("print_recipe", |a| a.hide(true)), mut_arg("dry_run", |a| a.hide(true)), mut_arg("text", |a| a.hide(true)),
          mut_arg("lora", |a| a.hide(true)), mut_arg("resume", |a| a.hide(true)), mut_arg("force", |a| a.hide(true)),
          mut_arg("chunks", |a| a.hide(true)), mut_arg("ctx", |a| a.hide(true)), mut_arg("max_kld", |a| a.hide(true)),
          mut_arg("max_ppl_increase", |a| a.hide(true)), mut_arg("min_top1", |a| a.hide(true)), mut_arg("min_cosine", |a| a.hide(true)),
          mut_arg("check", |a| a.hide(true)), mut_arg("no_check", |a| a.hide(true)), mut_arg("max_memory", |a| a.hide(true)))]
struct JobPlanArgs {
    /// Cut it into about so many tasks
    #[arg(help_heading = "Job", long, value_name = "N", default_value = "16")]
    tasks: NonZeroUsize,
    #[command(flatten)]
    convert: ConvertArgs,
}

#[derive(Debug, Args)]
#[command(mut_arg("task", |a| a.hide(true)), mut_arg("questions", |a| a.hide(true)), mut_arg("continuations", |a| a.hide(true)),
          mut_arg("length", |a| a.hide(true)), mut_arg("ablate", |a| a.hide(true)), mut_arg("ablate_chunks", |a| a.hide(true)),
          mut_arg("max_memory", |a| a.hide(true)), mut_arg("force", |a| a.hide(true)))]
struct JobCompareArgs {
    /// The folder of the job
    #[arg(help_heading = "Job", short, long, value_name = "JOB")]
    output: PathBuf,
    /// Cut it into about so many tasks
    #[arg(help_heading = "Job", long, value_name = "N", default_value = "16")]
    tasks: NonZeroUsize,
    #[command(flatten)]
    compare: CompareArgs,
}

#[derive(Debug, Args)]
struct JobRunArgs {
    /// The folder of the job
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// Of this phase alone; tasks are counted from its first
    #[arg(long, value_name = "PHASE")]
    phase: Option<String>,
    /// Do this task, counted from 0 [default: as SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX, AWS_BATCH_JOB_ARRAY_INDEX,
    /// CLOUD_RUN_TASK_INDEX, SKYPILOT_NODE_RANK or RANK says; without any of them all tasks]
    #[arg(long, value_name = "I")]
    index: Option<usize>,
    /// Do every N-th task, from the one of --index on
    #[arg(long, value_name = "N", requires = "index")]
    of: Option<NonZeroUsize>,
    /// Wait until the phases before are finished by others, instead of ending
    #[arg(long)]
    wait: bool,
    /// Calibrating: activations beyond this go to a file in the folder of the task. Comparing: memory to keep to
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_memory: Option<u64>,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
struct JobStatusArgs {
    /// The folder of the job
    #[arg(value_name = "JOB")]
    job: PathBuf,
    #[command(flatten)]
    common: ResultArgs,
}

#[derive(Debug, Args)]
struct AssembleArgs {
    /// The folder of the job
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// Output file or folder [default: MODEL-TYPE in the folder of the job]
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Replace outputs or reports that are there
    #[arg(long)]
    force: bool,
    /// Run each artifact beside the source before it gets its name [default: where that takes little]
    #[arg(long, overrides_with = "no_check")]
    check: bool,
    /// Do not run them
    #[arg(long, overrides_with = "check")]
    no_check: bool,
    #[command(flatten)]
    common: CommonArgs,
}

pub fn run(args: JobArgs, matches: &clap::ArgMatches) -> Result<()> {
    match args.command {
        JobCommand::Plan(args) => plan_job(*args, &given(matches)),
        JobCommand::Compare(args) => plan_comparison(*args, &given(matches)),
        JobCommand::Run(args) => run_tasks(&args),
        JobCommand::Status(args) => status(&args),
        JobCommand::Assemble(args) => assemble(args),
        JobCommand::Emit(args) => emit::run(&args),
    }
}

fn given(matches: &clap::ArgMatches) -> Vec<String> {
    matches.subcommand().map_or(Vec::new(), |(_, matches)| idle::given(matches))
}

const COMPARE: &str = "compare when the job is assembled: quantize compare";

/// Flags of a conversion that a job has no place for, by their names in the program.
const ELSEWHERE: [(&str, &str); 18] = [
    ("lora", "merge the adapter first: --to safetensors --lora"),
    ("text", COMPARE),
    ("report", COMPARE),
    ("chunks", COMPARE),
    ("ctx", COMPARE),
    ("max_kld", COMPARE),
    ("max_ppl_increase", COMPARE),
    ("min_top1", COMPARE),
    ("min_cosine", COMPARE),
    ("modelfile", "it is written by a conversion on one machine"),
    ("save_imatrix", "it is written by quantize calibrate"),
    ("print_recipe", "job.json has the recipe"),
    ("dry_run", "quantize plan shows what would be written"),
    ("resume", "a job goes on by itself"),
    ("force", "it is for quantize job assemble"),
    ("check", "it is for quantize job assemble"),
    ("no_check", "it is for quantize job assemble"),
    ("max_memory", "it is for quantize job run"),
];

const UNCUT: &str = "it is not cut into tasks: quantize compare";

/// The same of a comparison.
const UNCOMPARED: [(&str, &str); 8] = [
    ("task", UNCUT),
    ("questions", UNCUT),
    ("continuations", UNCUT),
    ("length", UNCUT),
    ("ablate", UNCUT),
    ("ablate_chunks", UNCUT),
    ("force", "it is for quantize job assemble"),
    ("max_memory", "it is for quantize job run"),
];

/// Refuses flags that a job has no place for.
fn refuse(command: &str, elsewhere: &[(&str, &str)], given: &[String]) -> Result<()> {
    match elsewhere.iter().find(|(id, _)| given.iter().any(|given| given == id)) {
        Some((id, why)) => Err(Error::Usage(format!("--{} is not for {command}: {why}", id.replace('_', "-")))),
        None => Ok(()),
    }
}

fn plan_comparison(args: JobCompareArgs, given: &[String]) -> Result<()> {
    refuse("job compare", &UNCOMPARED, given)?;
    let JobCompareArgs { output: folder, tasks, compare } = args;
    let control = eval::start(&compare.common, None)?;
    let terminal = Terminal::new(compare.common.quiet);
    let job = eval::comparison_in_tasks(&compare, tasks.get(), Run::new(&control, &terminal))?;
    job.save(&folder)?;
    match compare.common.format {
        Format::Json => print_json(&job),
        Format::Text => print(&described(&folder, &job)),
    }
}

fn plan_job(mut args: JobPlanArgs, given: &[String]) -> Result<()> {
    refuse("job plan", &ELSEWHERE, given)?;
    let tasks = args.tasks.get();
    let given: Vec<String> = given.iter().filter(|id| *id != "tasks").cloned().collect();
    let it = &mut args.convert;
    recipe::refuse_beside(it, &given)?;
    convert::positionals(it)?;
    let Some(folder) = it.output.clone() else {
        return Err(Error::Usage("name the folder of the job, which all machines see: -o JOB".into()));
    };
    let Prepared { control, terminal, recipe, source, .. } = prepare(it, &given, || Ok(()))?;
    let mut planned = crate::convert::plan(&source, &recipe)?;
    accept(it, &planned)?;
    let job = Job::new(&mut planned, tasks, Run::new(&control, &terminal))?;
    job.save(&folder)?;
    match it.common.format {
        Format::Json => print_json(&job),
        Format::Text => print(&described(&folder, &job)),
    }
}

/// What a job is, and how it is run.
fn described(folder: &Path, job: &dyn Tasks) -> String {
    let largest = job.tasks().iter().map(|task| task.reads).max().unwrap_or(0);
    let phases: Vec<String> =
        job.phases().iter().map(|phase| format!("{} ({})", phase.name, phase.tasks.len())).collect();
    format!(
        "{}\n  phases and their tasks: {}\n  {} tasks, each reads {} at most; they write {} in sum\n  run them: quantize job run {} --index I, \
         or see quantize job emit --help\n  then: quantize job assemble {}\n",
        folder.join(job::FILE).display(),
        phases.join(", "),
        job.tasks().len(),
        human(largest),
        human(job.tasks().iter().map(|task: &Task| task.writes).sum()),
        folder.display(),
        folder.display(),
    )
}

/// The job of a folder, which becomes absolute. Relative names in it are of where it was planned.
fn open(folder: &Path) -> Result<(PathBuf, Opened)> {
    let job = Opened::of(folder)?;
    let folder = std::path::absolute(folder).map_err(|e| Error::io(folder, e))?;
    // Where that is not there, what is named relatively is not found, which is said then.
    let _ = std::env::set_current_dir(job.directory());
    Ok((folder, job))
}

/// Where engines say which task of an array a process is.
const INDICES: [&str; 6] = [
    "SLURM_ARRAY_TASK_ID",
    "JOB_COMPLETION_INDEX",
    "AWS_BATCH_JOB_ARRAY_INDEX",
    "CLOUD_RUN_TASK_INDEX",
    "SKYPILOT_NODE_RANK",
    "RANK",
];

/// The index that the environment has, `value` being how it is asked. Of counts nothing is taken: Slurm's is that of the
/// last submission.
fn index_of(value: impl Fn(&str) -> Option<String>) -> Result<Option<usize>> {
    let mut found: Option<(&str, usize)> = None;
    for name in INDICES {
        let Some(text) = value(name) else { continue };
        let index = text.parse();
        let index = index.map_err(|_| Error::Usage(format!("{name}={text} is no index of a task; give --index")))?;
        match found {
            Some((other, there)) if there != index => {
                let what = format!("{other}={there} and {name}={index} name two tasks; give --index");
                return Err(Error::Usage(what));
            }
            Some(_) => {}
            None => found = Some((name, index)),
        }
    }
    Ok(found.map(|(_, index)| index))
}

/// The tasks of a range that are meant.
fn chosen(tasks: Range<usize>, index: Option<usize>, of: Option<usize>) -> Result<Vec<usize>> {
    let Some(index) = index else { return Ok(tasks.collect()) };
    if index >= of.unwrap_or(tasks.len()) {
        let last = of.unwrap_or(tasks.len()).saturating_sub(1);
        return Err(Error::Usage(format!("there is no task {index}: they are counted from 0 to {last}")));
    }
    match of {
        Some(of) => Ok(tasks.skip(index).step_by(of).collect()),
        None => Ok(vec![tasks.start + index]),
    }
}

fn run_tasks(args: &JobRunArgs) -> Result<()> {
    let threads = options::threads(args.common.threads)?;
    let (cancel, max_memory) = (interrupt::CANCEL.clone(), args.max_memory);
    let control = Control { threads, cancel, max_memory, ..Control::default() };
    interrupt::catch_interrupt()?;
    let terminal = Terminal::new(args.common.quiet);
    let (folder, opened) = open(&args.job)?;
    let job = opened.tasks();
    let all = match &args.phase {
        Some(name) => job.phase(name)?.tasks.clone(),
        None => 0..job.tasks().len(),
    };
    let index = match args.index {
        Some(index) => Some(index),
        None => index_of(|name| std::env::var(name).ok())?,
    };
    let mut tasks = Vec::new();
    for task in chosen(all, index, args.of.map(NonZeroUsize::get))? {
        if args.wait {
            wait(&folder, job, task, args, &control)?;
        }
        let now = job::run(&folder, job, task, &control, &terminal)?;
        tasks.push(json!({ "task": task, "done_before": !now }));
        if !args.common.quiet {
            say!("task {task}: {}", if now { "done" } else { "was done already" });
        }
    }
    match args.common.format {
        Format::Text => Ok(()),
        Format::Json => print_json(&json!({ "tasks": tasks })),
    }
}

/// Waits until a task may begin.
fn wait(folder: &Path, job: &dyn Tasks, task: usize, args: &JobRunArgs, control: &Control) -> Result<()> {
    if job::is_due(folder, job, task)? {
        return Ok(());
    }
    if !args.common.quiet {
        say!("task {task} waits for the phases before it");
    }
    while !job::is_due(folder, job, task)? {
        // The folder is left alone for two seconds, but a request to stop is heard.
        for _ in 0..20 {
            control.cancel.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

fn status(args: &JobStatusArgs) -> Result<()> {
    let opened = Opened::of(&args.job)?;
    let job = opened.tasks();
    let status = job::status(&args.job, job)?;
    let done = status.count(|s| matches!(s, State::Done { .. }));
    let running = status.count(|s| matches!(s, State::Running));
    let failed = status.count(|s| matches!(s, State::Failed { .. }));
    if args.common.format == Format::Json {
        return print_json(&json!({
            "done": done, "running": running, "failed": failed, "of": status.tasks.len(),
            "seconds_left": status.seconds_left, "tasks": status.tasks, "phases": job.phases(),
        }));
    }
    let mut out = format!("{done} of {} tasks done, {running} running, {failed} failed\n", status.tasks.len());
    for phase in job.phases() {
        let done = phase.tasks.clone().filter(|i| matches!(status.tasks[*i], State::Done { .. })).count();
        out += &format!("  {:<12} {done} of {}\n", phase.name, phase.tasks.len());
    }
    for (task, state) in status.tasks.iter().enumerate() {
        if let State::Failed { error } = state {
            out += &format!("  task {task} failed: {error}\n");
        }
    }
    if let Some(seconds) = status.seconds_left.filter(|_| done < status.tasks.len()) {
        let begun = |phase: &Phase| phase.tasks.clone().any(|i| matches!(status.tasks[i], State::Done { .. }));
        let of = if job.phases().iter().all(begun) { "" } else { ", without phases that have not begun" };
        out += &format!("  about {seconds:.0} s of one task at a time are left{of}\n");
    }
    print(&out)
}

fn assemble(args: AssembleArgs) -> Result<()> {
    let threads = options::threads(args.common.threads)?;
    let check = (args.check || args.no_check).then_some(args.check);
    let cancel = interrupt::CANCEL.clone();
    let control = Control { threads, check, force: args.force, cancel, ..Control::default() };
    interrupt::catch_interrupt()?;
    let terminal = Terminal::new(args.common.quiet);
    let output = args.output.map(|path| std::path::absolute(&path).map_err(|e| Error::io(&path, e))).transpose()?;
    let (folder, opened) = open(&args.job)?;
    let job = match opened {
        Opened::Conversion(job) => job,
        Opened::Comparison(job) => {
            let of_conversions =
                [("--output", output.is_some()), ("--check", args.check), ("--no-check", args.no_check)];
            if let Some((flag, _)) = of_conversions.iter().find(|(_, given)| *given) {
                return Err(Error::Usage(format!("{flag} is for a conversion, and the job is a comparison")));
            }
            return eval::assembled(&folder, &job, &control, args.common.quiet, args.common.format);
        }
    };
    let (plan, outcome) = job::assemble(&folder, &job, output.as_deref(), &control, &terminal)?;
    match args.common.format {
        Format::Text => convert::summary(&plan, &outcome, args.common.quiet),
        Format::Json => print_json(&convert::summary_json(&plan, &outcome)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Result<Option<usize>> {
        index_of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn the_environment_names_a_task_or_is_refused() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[("SLURM_ARRAY_TASK_ID", "7"), ("SLURM_ARRAY_TASK_COUNT", "2")]).unwrap(), Some(7));
        assert_eq!(of(&[("SLURM_ARRAY_TASK_ID", "3"), ("RANK", "3")]).unwrap(), Some(3));
        for bad in [[("SLURM_ARRAY_TASK_ID", "3"), ("RANK", "0")], [("RANK", "x"), ("HOME", "")]] {
            assert!(of(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_index_is_into_the_list_and_a_share_is_every_nth() {
        assert_eq!(chosen(4..8, None, None).unwrap(), [4, 5, 6, 7]);
        assert_eq!(chosen(4..8, Some(3), None).unwrap(), [7]);
        assert_eq!(chosen(4..8, Some(1), Some(3)).unwrap(), [5]);
        assert_eq!(chosen(0..8, Some(1), Some(3)).unwrap(), [1, 4, 7]);
        // More processes than tasks.
        assert!(chosen(0..2, Some(2), Some(3)).unwrap().is_empty());
        assert!(chosen(4..8, Some(4), None).is_err() && chosen(0..8, Some(3), Some(3)).is_err());
    }
}
