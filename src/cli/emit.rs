//! `quantize job emit`: what an engine is given to run the tasks of a job. Text alone: nothing is called, and no account is
//! touched. Exit code 75 asks for another try; each engine is told so in its own way.

use super::output::print;
use super::tasks::Opened;
use crate::Result;
use crate::convert::job::Phase;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

/// Who runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// A script for sh that submits an array per phase
    Slurm,
    /// A Job with indexed completions per phase
    Kubernetes,
    /// A program in Python
    Ray,
    /// A script for sh around the AWS command line
    AwsBatch,
    /// A task file
    Skypilot,
    /// A script for sh around the Hugging Face command line
    HfJobs,
}

#[derive(Debug, Args)]
pub struct EmitArgs {
    /// Who runs the tasks
    #[arg(value_enum, value_name = "ENGINE")]
    engine: Engine,
    /// The folder of the job, as its tasks see it
    #[arg(value_name = "JOB")]
    job: PathBuf,
    /// Cores of a task
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Gibibytes of memory of a task
    #[arg(long, value_name = "GIB", default_value = "16", value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,
    /// Tasks that run at once, at most [default: all of a phase]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    parallel: Option<u32>,
    /// Kubernetes, Hugging Face Jobs: the container image, with quantize in its path
    #[arg(long, value_name = "IMAGE", default_value = "quantize:latest")]
    image: String,
    /// Kubernetes: the claim on a volume that many may write, and where it is mounted; Hugging Face Jobs: the volume
    #[arg(long, value_name = "NAME", default_value = "quantize-shared")]
    claim: String,
    /// Kubernetes, Hugging Face Jobs: where the shared volume is mounted
    #[arg(long, value_name = "PATH", default_value = "/data")]
    mount: String,
}

pub fn run(args: &EmitArgs) -> Result<()> {
    let job = Opened::of(&args.job)?;
    print(&emitted(args, job.tasks().phases(), &std::path::absolute(&args.job).unwrap_or_else(|_| args.job.clone())))
}

fn emitted(args: &EmitArgs, phases: &[Phase], folder: &Path) -> String {
    let it = Emit { args, phases, folder: folder.display().to_string() };
    match args.engine {
        Engine::Slurm => it.slurm(),
        Engine::Kubernetes => it.kubernetes(),
        Engine::Ray => it.ray(),
        Engine::AwsBatch => it.aws_batch(),
        Engine::Skypilot => it.skypilot(),
        Engine::HfJobs => it.hf_jobs(),
    }
}

/// As a word of sh.
fn sh(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_string(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// As a string of JSON, which is one of YAML and Python too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct Emit<'a> {
    args: &'a EmitArgs,
    phases: &'a [Phase],
    folder: String,
}

impl Emit<'_> {
    fn at_once(&self, phase: &Phase) -> usize {
        self.args.parallel.map_or(phase.tasks.len(), |n| (n as usize).min(phase.tasks.len()))
    }

    fn slurm(&self) -> String {
        let (job, cpus, memory) = (sh(&self.folder), self.args.cpus, self.args.memory);
        let mut out = format!(
            r#"#!/bin/sh
# Submits the tasks of the job, an array for each phase, and their assembly. Run it where sbatch is.
# A task that ends with 75 is queued again, ten times at most. Some tasks alone: sbatch --array=3,7 ...
set -eu
JOB={job}
QUANTIZE=${{QUANTIZE:-quantize}}
export JOB QUANTIZE
submit() {{ # dependency, sbatch's arguments; the command is read from standard input
  after=$1; shift
  sbatch --parsable --kill-on-invalid-dep=yes ${{after:+--dependency=afterok:$after}} \
    --cpus-per-task={cpus} --requeue --open-mode=append --export=ALL "$@" | cut -d ";" -f 1
}}
after=
"#
        );
        for phase in self.phases {
            let (name, last, many) = (&phase.name, phase.tasks.len().saturating_sub(1), self.at_once(phase));
            out += &format!(
                r#"after=$(submit "$after" --job-name=quantize-{name} --mem={memory}G --array=0-{last}%{many} --output="$JOB/{name}-%a.log" <<'TASK'
#!/bin/sh
"$QUANTIZE" job run "$JOB" --phase {name} --index "$SLURM_ARRAY_TASK_ID" --threads "$SLURM_CPUS_PER_TASK" --quiet
rc=$?
if [ $rc = 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt 10 ]; then
  # By the task's own name: SLURM_JOB_ID of one of them is that of the whole array. It is ended while it sleeps.
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}" && sleep 60
fi
exit $rc
TASK
)
echo "{name}: $after"
"#
            );
        }
        out += &format!(
            r#"after=$(submit "$after" --job-name=quantize-assemble --mem={memory}G --output="$JOB/assemble.log" <<'TASK'
#!/bin/sh
exec "$QUANTIZE" job assemble "$JOB" --threads "$SLURM_CPUS_PER_TASK" --quiet
TASK
)
echo "assemble: $after"
"#
        );
        out
    }

    fn kubernetes(&self) -> String {
        let wait: Vec<String> = self
            .phases
            .iter()
            .map(|p| format!("kubectl wait --for=condition=complete job/quantize-{}", p.name))
            .collect();
        let mut out = format!(
            "# One Job for each phase and one that assembles. Kubernetes knows no order among them, and a task that comes too early\n\
             # fails: apply them one by one, each after\n#   {}\n",
            wait.join("\n#   ")
        );
        for phase in self.phases {
            let (name, many) = (&phase.name, self.at_once(phase));
            let command = ["quantize", "job", "run", &self.folder, "--phase", name, "--quiet"];
            let index = format!(
                "  completionMode: Indexed\n  completions: {}\n  parallelism: {many}\n  backoffLimitPerIndex: 3\n  maxFailedIndexes: 0\n",
                phase.tasks.len()
            );
            out += &self.manifest(name, &index, "FailIndex", &command);
        }
        let command = ["quantize", "job", "assemble", &self.folder, "--quiet"];
        out + &self.manifest("assemble", "  backoffLimit: 6\n", "FailJob", &command)
    }

    fn manifest(&self, name: &str, index: &str, give_up: &str, command: &[&str]) -> String {
        let EmitArgs { cpus, memory, image, claim, mount, .. } = self.args;
        let command: Vec<String> = command.iter().map(|word| quoted(word)).collect();
        format!(
            r#"---
apiVersion: batch/v1
kind: Job
metadata:
  name: quantize-{name}
spec:
{index}  podReplacementPolicy: Failed
  podFailurePolicy:
    rules:
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
      - action: Ignore
        onExitCodes:
          containerName: task
          operator: In
          values: [75]
      - action: {give_up}
        onExitCodes:
          containerName: task
          operator: In
          values: [2, 3, 4]
  template:
    spec:
      restartPolicy: Never
      terminationGracePeriodSeconds: 60
      containers:
        - name: task
          image: {image}
          command: [{command}]
          env:
            - name: QUANTIZE_THREADS
              value: "{cpus}"
          resources:
            requests:
              cpu: "{cpus}"
              memory: {memory}Gi
            limits:
              memory: {memory}Gi
          volumeMounts:
            - name: shared
              mountPath: {mount}
      volumes:
        - name: shared
          persistentVolumeClaim:
            claimName: {claim}
"#,
            image = quoted(image),
            command = command.join(", "),
            mount = quoted(mount),
            claim = quoted(claim),
        )
    }

    fn ray(&self) -> String {
        let phases: Vec<String> =
            self.phases.iter().map(|p| format!("({}, {})", quoted(&p.name), p.tasks.len())).collect();
        format!(
            r#""""Runs the tasks of the job on Ray: on the cluster of RAY_ADDRESS, or on this machine. Needs Ray 2, and its token."""
import os
import subprocess

import ray

JOB = {job}
QUANTIZE = os.environ.get("QUANTIZE", "quantize")
CPUS = {cpus}


@ray.remote(num_cpus=CPUS, memory={memory} << 30, max_retries=-1, retry_exceptions=[BlockingIOError])
def task(arguments):
    # Variables of an engine around Ray name no task here, so the index is given.
    code = subprocess.run([QUANTIZE, "job", *arguments, "--threads", str(CPUS), "--quiet"]).returncode
    if code == 75:
        raise BlockingIOError("asks to be queued again")
    if code:
        raise RuntimeError(f"quantize job {{' '.join(arguments)}}: exit code {{code}}")


ray.init(log_to_driver=True)
for phase, count in [{phases}]:
    ray.get([task.remote(["run", JOB, "--phase", phase, "--index", str(i)]) for i in range(count)])
ray.get(task.remote(["assemble", JOB]))
ray.shutdown()
"#,
            job = quoted(&self.folder),
            cpus = self.args.cpus,
            memory = self.args.memory,
            phases = phases.join(", "),
        )
    }

    fn aws_batch(&self) -> String {
        let (cpus, memory) = (self.args.cpus, 1024 * self.args.memory);
        let mut out = format!(
            r#"#!/bin/sh
# Submits the tasks of the job to AWS Batch: an array for each phase, then the assembly. QUEUE and DEFINITION name a queue and
# a job definition whose container has quantize in its path and the job's folder mounted (EFS, FSx).
set -eu
: "${{QUEUE:?}}" "${{DEFINITION:?}}"
RETRY='{{"attempts":10,"evaluateOnExit":[{{"onStatusReason":"Host EC2*","action":"RETRY"}},{{"onExitCode":"75","action":"RETRY"}},{{"onExitCode":"*","action":"EXIT"}}]}}'
submit() {{ # name, command as JSON, more arguments
  name=$1; command=$2; shift 2
  aws batch submit-job --job-name "quantize-$name" --job-queue "$QUEUE" --job-definition "$DEFINITION" \
    --retry-strategy "$RETRY" --query jobId --output text "$@" \
    --container-overrides "{{\"command\":$command,\"resourceRequirements\":[{{\"type\":\"VCPU\",\"value\":\"{cpus}\"}},{{\"type\":\"MEMORY\",\"value\":\"{memory}\"}}]}}"
}}
"#
        );
        let mut after = String::new();
        for phase in self.phases {
            let (name, count) = (&phase.name, phase.tasks.len());
            let words = ["quantize", "job", "run", &self.folder, "--phase", name, "--quiet"].map(quoted).join(",");
            // One task is no array.
            let array = if count > 1 { format!(" --array-properties size={count}") } else { String::new() };
            out += &format!("id=$(submit {name} {}{array}{after})\necho \"{name}: $id\"\n", sh(&format!("[{words}]")));
            after = " --depends-on jobId=\"$id\"".into();
        }
        let words = ["quantize", "job", "assemble", &self.folder, "--quiet"].map(quoted).join(",");
        out + &format!("id=$(submit assemble {}{after})\necho \"assemble: $id\"\n", sh(&format!("[{words}]")))
    }

    fn skypilot(&self) -> String {
        let nodes = self.args.parallel.unwrap_or(4);
        let mut run = String::new();
        for phase in self.phases {
            run += &format!(
                "  quantize job run {} --phase {} --index \"$SKYPILOT_NODE_RANK\" --of \"$SKYPILOT_NUM_NODES\" --quiet\n",
                sh(&self.folder),
                phase.name
            );
        }
        let more = match self.phases.len() {
            1 => "",
            _ => "# Phases wait for each other: run a managed job for each, with that line of `run` alone.\n",
        };
        format!(
            "# sky jobs launch THIS_FILE; then, on one machine: quantize job assemble {job}\n\
             # Every node does a share of the tasks. If one of them fails, all are ended; started again, they pass over what is done.\n\
             # Mount the shared folder under file_mounts or volumes, as your cloud has it.\n{more}\
             name: quantize\nnum_nodes: {nodes}\nresources:\n  cpus: {cpus}+\n  memory: {memory}+\n  job_recovery:\n    \
             recover_on_exit_codes: [75]\nrun: |\n  set -e\n{run}",
            job = sh(&self.folder),
            cpus = self.args.cpus,
            memory = self.args.memory,
        )
    }

    fn hf_jobs(&self) -> String {
        let EmitArgs { image, claim, mount, .. } = self.args;
        let mut out = format!(
            "#!/bin/sh\n# Runs the tasks of the job as Hugging Face Jobs, one for each. There are no arrays and no order: run the lines of a phase,\n\
             # wait (hf jobs ps), look (quantize job status), run those again that are missing, then go on.\nset -eu\n\
             RUN='hf jobs run --detach --timeout 12h --flavor cpu-upgrade'\nVOLUME={}\n",
            sh(&format!("{claim}:{mount}"))
        );
        let (image, job) = (sh(image), sh(&self.folder));
        for phase in self.phases {
            out += &format!(
                "for i in $(seq 0 {}); do\n  $RUN --volume \"$VOLUME\" {image} quantize job run {job} --phase {} --index \"$i\" --quiet\ndone\n",
                phase.tasks.len().saturating_sub(1),
                phase.name
            );
        }
        out + &format!(
            "# When all are done:\n# $RUN --volume \"$VOLUME\" {image} quantize job assemble {job} --quiet\n"
        )
    }
}
