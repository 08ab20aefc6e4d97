import { readFile, rename, writeFile } from "node:fs/promises";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export type Result<T, E = Error> = { ok: true; value: T } | { ok: false; error: E };

const ok = <T>(value: T): Result<T, never> => ({ ok: true, value });
const err = <E>(error: E): Result<never, E> => ({ ok: false, error });

interface Task {
  readonly id: number;
  title: string;
  due?: Date;
  state: "open" | "done" | { blockedBy: number[] };
}

type Patch = Partial<Omit<Task, "id">>;

export class TaskStore {
  private tasks = new Map<number, Task>();
  private nextId = 1;

  constructor(private readonly file: string) {}

  add(title: string, due?: Date): Task {
    const task: Task = { id: this.nextId++, title, due, state: "open" };
    this.tasks.set(task.id, task);
    return task;
  }

  update(id: number, patch: Patch): Result<Task, "missing" | "cycle"> {
    const task = this.tasks.get(id);
    if (!task) return err("missing");
    if (typeof patch.state === "object" && patch.state.blockedBy.some((b) => this.reaches(b, id))) {
      return err("cycle");
    }
    return ok(Object.assign(task, patch));
  }

  /** Does following `blockedBy` from one task ever arrive at another? */
  private reaches(from: number, target: number, seen = new Set<number>()): boolean {
    if (from === target) return true;
    if (seen.has(from)) return false;
    seen.add(from);
    const state = this.tasks.get(from)?.state;
    return typeof state === "object" && state.blockedBy.some((n) => this.reaches(n, target, seen));
  }

  *overdue(now = new Date()): Generator<Task> {
    for (const t of this.tasks.values()) {
      if (t.state !== "done" && t.due && t.due < now) yield t;
    }
  }

  async save(): Promise<void> {
    const tmp = `${this.file}.tmp`;
    await writeFile(tmp, JSON.stringify([...this.tasks.values()], null, 2), "utf8");
    await rename(tmp, this.file);
  }

  static async load(file: string): Promise<TaskStore> {
    const store = new TaskStore(file);
    const raw = JSON.parse(await readFile(file, "utf8")) as Json;
    if (!Array.isArray(raw)) throw new TypeError(`${file}: expected an array`);
    for (const item of raw as unknown as Array<Omit<Task, "due"> & { due?: string }>) {
      store.tasks.set(item.id, { ...item, due: item.due ? new Date(item.due) : undefined });
      store.nextId = Math.max(store.nextId, item.id + 1);
    }
    return store;
  }
}
