import {
  checkRequest,
  workloadBlockReferencesMax,
  workloadRequestsMax,
  type Workload,
  type WorkloadRequest,
} from "./workload.ts";
import { rowError, type RowPlace } from "./row-parser.ts";

/** Everything of a workload but its requests. */
export type WorkloadMeta = Omit<Workload, "requests">;

/** Collects the requests of one file in order, holding every rule of `Workload`. */
export class WorkloadBuilder {
  readonly #meta: WorkloadMeta;
  readonly #requests: WorkloadRequest[] = [];
  #references = 0;
  #previousAtMs = 0;

  constructor(meta: WorkloadMeta) {
    this.#meta = meta;
  }

  /** Adds the request of one row; throws `invalid_request` naming the row when it breaks a rule. */
  add(request: WorkloadRequest, place: RowPlace): void {
    checkRequest(
      request,
      { previousAtMs: this.#previousAtMs, blockTokens: this.#meta.blockTokens },
      (field, problem) => rowError(place, field, problem),
    );
    this.#references += request.blockIds.length;
    if (this.#requests.length >= workloadRequestsMax) {
      throw rowError(
        place,
        "row",
        `is past the ${String(workloadRequestsMax)} requests a workload may hold; cut the file`,
      );
    }
    if (this.#references > workloadBlockReferencesMax) {
      throw rowError(
        place,
        "row",
        `goes past the ${String(workloadBlockReferencesMax)} block references a workload may hold; cut the file`,
      );
    }
    this.#previousAtMs = request.atMs;
    this.#requests.push(request);
  }

  /** The finished workload. */
  build(): Workload {
    return { ...this.#meta, requests: this.#requests };
  }
}
