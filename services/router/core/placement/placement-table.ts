import type { WorkerId } from "../../../shared/core/ids.ts";
import type { StepModel } from "../../../shared/core/step-model.ts";
import type { FilteredWorker, FilterReason } from "../decisions/decision.ts";
import type { LoadBook } from "../load/load-book.ts";
import type { WorkerBook } from "../load/worker-book.ts";
import { column, rowLength, WorkerColumns, workerStates } from "../load/worker-columns.ts";
import type { Member } from "../membership/member.ts";
import { PoolRows } from "./pool-rows.ts";

/** What decides who may serve a request. */
export interface EligibilityQuestion {
  readonly pool: string;
  readonly promptTokens: number;
  /** Whether its tokens were counted, so that its length may rule workers out. */
  readonly isCounted: boolean;
  /** Only these endpoints, `ip:port` or ip alone, may serve; `undefined` means all. */
  readonly subset: ReadonlySet<string> | undefined;
  /** Workers that must not be chosen; `undefined` means none. */
  readonly excluded?: ReadonlySet<string> | undefined;
}

/** Who may serve a request. Valid until the table is asked or changed again. */
export interface Eligible {
  /** Rows of those who may, the first `count`, in the order of their ids. */
  readonly rows: Int32Array;
  readonly count: number;
  /** Mean of the mean answer lengths seen on them, tokens; NaN when none has been seen. */
  readonly outputTokensMean: number;
  /** Those who may not, in the order of their ids, as many as `listedOf` says. */
  readonly filtered: readonly FilteredWorker[];
  /** All who may not, by reason. */
  readonly filteredCounts: ReadonlyMap<FilterReason, number>;
  /** Of those not in `filtered`. */
  readonly filteredLeftOut: number;
}

/** What is known of a member's speed. */
export interface KnownSpeed {
  readonly steps: StepModel;
  /** `undefined` before the first answer. */
  readonly outputTokensMean: number | undefined;
}

/** A worker of the table, with what only the few candidates that are kept are asked for. */
export interface TableWorker {
  readonly row: number;
  readonly workerId: WorkerId;
  readonly book: WorkerBook;
  /** Replaced when its endpoint changes, so that older decisions keep theirs. */
  named: { readonly workerId: WorkerId; readonly endpoint: string; steps: StepModel };
  pool: string;
  /** The endpoint's address without its port. */
  host: string;
  suspect: boolean;
  ready: boolean;
  /** 0 when unknown. */
  contextTokensMax: number;
}

/** A list of workers up to this length is kept whole. */
const listedWhole = 64;
/** What is kept of a longer one. */
const listedOfMany = 16;

/** How many of `count` workers a decision lists, at least `least`: all of a small pool, the first 16 of a large one. */
export function listedOf(count: number, least = 0): number {
  return count <= listedWhole ? count : Math.min(count, Math.max(listedOfMany, least));
}

const takes = workerStates.indexOf("takes");
const away = workerStates.indexOf("away");

/** Why a worker that is not away does not take requests. */
const stateReasons: readonly FilterReason[] = workerStates.map((state) =>
  state === "takes" ? "not_ready" : state,
);

/**
 * Whether whole requests go to it. A decode engine of a pair computes prompts too where its own protocol lets it, which
 * SGLang's does not.
 */
function servesWhole({ role, facts }: Member): boolean {
  if (role === "both") return true;
  const hasConnector = facts?.kvTransfer !== undefined && facts.kvTransfer !== "";
  return role === "decode" && hasConnector && facts.engineName !== "sglang";
}

function stateOf(member: Member): (typeof workerStates)[number] {
  if (!member.ready) return "not_ready";
  if (!servesWhole(member)) return "wrong_role";
  return member.unheldSince === undefined ? "takes" : "away";
}

/**
 * What placement needs of every member, kept up to date by whoever changes it, so that asking costs a few nanoseconds
 * a worker: a row of `WorkerColumns` each, and for each pool its rows in the order of ids.
 */
export class PlacementTable {
  readonly columns = new WorkerColumns();
  readonly #book: LoadBook;
  readonly #byId = new Map<WorkerId, TableWorker>();
  /** By row; rows given back keep their last worker. */
  readonly #workers: TableWorker[] = [];
  readonly #pools = new Map<string, PoolRows>();
  #eligible = new Int32Array(64);
  #away = new Int32Array(64);
  readonly #filtered = new FilteredList();

  constructor(options: { readonly book: LoadBook }) {
    this.#book = options.book;
  }

  /** The worker of a row that is in use. */
  worker(row: number): TableWorker {
    return this.#workers[row] as TableWorker;
  }

  /** The row of a worker; −1 when it is not a member. */
  rowOf(id: WorkerId): number {
    return this.#byId.get(id)?.row ?? -1;
  }

  /** A member joined, or anything that it says of itself changed. */
  memberChanged(member: Member, speed: KnownSpeed): void {
    const worker = this.#byId.get(member.key) ?? this.#enter(member, speed.steps);
    if (worker.pool !== member.pool) {
      this.#leavePool(worker);
      this.#enterPool(worker, member.pool);
    }
    const { facts, endpoint } = member;
    if (worker.named.endpoint !== endpoint) {
      worker.named = { workerId: member.key, endpoint, steps: speed.steps };
    }
    worker.host = endpoint.slice(0, endpoint.lastIndexOf(":"));
    worker.suspect = member.suspect;
    this.#setContext(worker, facts?.contextTokensMax ?? 0);
    const { values } = this.columns;
    const at = worker.row * rowLength;
    const limit = worker.contextTokensMax;
    values[at + column.capacityTokens] = facts?.capacityTokens ?? 0;
    values[at + column.stepTokensMax] = facts?.stepTokensMax ?? 0;
    values[at + column.promptTokensLimit] = limit > 0 ? limit : Infinity;
    values[at + column.slot] = member.slot ?? -1;
    values[at + column.state] = workerStates.indexOf(stateOf(member));
    this.#setReady(worker, member.ready);
    this.#setSpeed(worker, speed);
  }

  /** More is known of a member's speed. Ignored for others. */
  speedChanged(key: WorkerId, speed: KnownSpeed): void {
    const worker = this.#byId.get(key);
    if (worker !== undefined) this.#setSpeed(worker, speed);
  }

  /** A member left. */
  memberLeft(key: WorkerId): void {
    const worker = this.#byId.get(key);
    if (worker === undefined) return;
    this.#byId.delete(key);
    this.#leavePool(worker);
    this.#book.detach(key);
    this.columns.release(worker.row);
  }

  /** Workers of the pool whose engines are ready. */
  readyCount(pool: string): number {
    return this.#pools.get(pool)?.readyCount ?? 0;
  }

  /** Longest context that a worker of the pool takes, tokens; 0 when none is known. O(workers) after a change. */
  contextMax(pool: string): number {
    const rows = this.#pools.get(pool);
    if (rows === undefined) return 0;
    let max = rows.contextMax;
    if (max === undefined) {
      max = 0;
      for (let i = 0; i < rows.count; i++) {
        max = Math.max(max, this.worker(rows.rows[i] as number).contextTokensMax);
      }
      rows.contextMax = max;
    }
    return max;
  }

  /** Who may serve. Those whose worker is silent may when nobody else does: their engines probably still serve. */
  eligible(question: EligibilityQuestion): Eligible {
    const pool = this.#pools.get(question.pool);
    const count = pool?.count ?? 0;
    this.#reserve(count);
    const { values } = this.columns;
    const { subset, excluded } = question;
    const isRestricted = subset !== undefined || excluded !== undefined;
    const promptTokens = question.isCounted ? question.promptTokens : -1;
    const rows = this.#eligible;
    const filtered = this.#filtered;
    let eligible = 0;
    let awayCount = 0;
    for (let i = 0; i < count; i++) {
      const row = pool?.rows[i] as number;
      const at = row * rowLength;
      const state = values[at + column.state] as number;
      if (state > away) filtered.add(this.worker(row), stateReasons[state] as FilterReason);
      else if (isRestricted && !isAllowed(question, this.worker(row))) {
        const isNamed = excluded?.has(this.worker(row).workerId) === true;
        filtered.add(this.worker(row), isNamed ? "excluded" : "outside_subset");
      } else if (promptTokens >= (values[at + column.promptTokensLimit] as number)) {
        filtered.add(this.worker(row), "context_too_long");
      } else if (state === takes) rows[eligible++] = row;
      else this.#away[awayCount++] = row;
    }
    if (eligible === 0) {
      return this.#answer(this.#away, awayCount, filtered);
    }
    for (let i = 0; i < awayCount; i++) filtered.add(this.worker(this.#away[i] as number), "away");
    return this.#answer(rows, eligible, filtered);
  }

  #answer(rows: Int32Array, count: number, list: FilteredList): Eligible {
    const { values } = this.columns;
    let sum = 0;
    let seen = 0;
    for (let i = 0; i < count; i++) {
      const mean = values[(rows[i] as number) * rowLength + column.outputTokensMean] as number;
      if (mean > 0) {
        sum += mean;
        seen++;
      }
    }
    const { filtered, filteredCounts, filteredLeftOut } = list.take();
    const outputTokensMean = sum / seen;
    return { rows, count, outputTokensMean, filtered, filteredCounts, filteredLeftOut };
  }

  #setContext(worker: TableWorker, tokensMax: number): void {
    if (worker.contextTokensMax === tokensMax) return;
    worker.contextTokensMax = tokensMax;
    const pool = this.#pools.get(worker.pool);
    if (pool !== undefined) pool.contextMax = undefined;
  }

  #setReady(worker: TableWorker, ready: boolean): void {
    const pool = this.#pools.get(worker.pool);
    if (pool !== undefined) pool.readyCount += Number(ready) - Number(worker.ready);
    worker.ready = ready;
  }

  #setSpeed(worker: TableWorker, { steps, outputTokensMean }: KnownSpeed): void {
    worker.named.steps = steps;
    const { values } = this.columns;
    const at = worker.row * rowLength;
    values[at + column.c0] = steps.c0;
    values[at + column.c1] = steps.c1;
    values[at + column.c2] = steps.c2;
    values[at + column.d0] = steps.d0;
    values[at + column.d1] = steps.d1;
    values[at + column.d2] = steps.d2;
    values[at + column.outputTokensMean] = outputTokensMean ?? Number.NaN;
  }

  #enter(member: Member, steps: StepModel): TableWorker {
    const row = this.columns.take();
    const worker: TableWorker = {
      row,
      workerId: member.key,
      book: this.#book.attach(member.key, this.columns, row),
      named: { workerId: member.key, endpoint: "", steps },
      pool: member.pool,
      host: "",
      suspect: true,
      ready: false,
      contextTokensMax: 0,
    };
    this.#byId.set(member.key, worker);
    this.#workers[row] = worker;
    this.#enterPool(worker, member.pool);
    return worker;
  }

  #enterPool(worker: TableWorker, pool: string): void {
    worker.pool = pool;
    let rows = this.#pools.get(pool);
    if (rows === undefined) {
      rows = new PoolRows();
      this.#pools.set(pool, rows);
    }
    rows.add(worker.workerId, worker.row);
  }

  #leavePool(worker: TableWorker): void {
    this.#setReady(worker, false);
    const rows = this.#pools.get(worker.pool);
    rows?.remove(worker.workerId);
    if (rows?.count === 0) this.#pools.delete(worker.pool);
  }

  #reserve(count: number): void {
    if (count <= this.#eligible.length) return;
    this.#eligible = new Int32Array(2 * count);
    this.#away = new Int32Array(2 * count);
  }
}

type Filtered = Pick<Eligible, "filtered" | "filteredCounts" | "filteredLeftOut">;

const nobodyFiltered: Filtered = { filtered: [], filteredCounts: new Map(), filteredLeftOut: 0 };

/** Collects workers that may not serve: a few of them, and how many for which reason. */
class FilteredList {
  #first: FilteredWorker[] = [];
  #counts = new Map<FilterReason, number>();
  #count = 0;

  add(worker: TableWorker, reason: FilterReason): void {
    this.#counts.set(reason, (this.#counts.get(reason) ?? 0) + 1);
    this.#count++;
    if (this.#first.length > listedWhole) return;
    const { workerId, endpoint } = worker.named;
    this.#first.push({ workerId, endpoint, reason });
  }

  /** What has been collected; begins anew. */
  take(): Filtered {
    if (this.#count === 0) return nobodyFiltered;
    const first = this.#first;
    const filteredCounts = this.#counts;
    const listed = listedOf(this.#count);
    const filteredLeftOut = this.#count - listed;
    this.#first = [];
    this.#counts = new Map();
    this.#count = 0;
    const filtered = listed < first.length ? first.slice(0, listed) : first;
    return { filtered, filteredCounts, filteredLeftOut };
  }
}

/** Whether a question lets a worker be chosen, whatever its state. */
export function isAllowed(
  { subset, excluded }: Pick<EligibilityQuestion, "subset" | "excluded">,
  worker: TableWorker,
): boolean {
  if (excluded?.has(worker.workerId) === true) return false;
  return subset === undefined || isInSubset(subset, worker);
}

/** A subset entry may be an ip:port or an ip alone. */
function isInSubset(subset: ReadonlySet<string>, worker: TableWorker): boolean {
  return subset.has(worker.named.endpoint) || subset.has(worker.host);
}
