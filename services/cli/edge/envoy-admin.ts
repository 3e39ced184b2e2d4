import { request } from "undici";
import { MeshError } from "../../shared/core/errors.ts";
import { parseClusters, parseStats, type EnvoyClusters } from "../core/envoy-state.ts";

/** Longest wait for one answer of the admin interface, ms. */
const answerMsMax = 2_000;

/** Client of one Envoy's admin interface. Every call is bounded and fails with `worker_lost`. */
export class EnvoyAdmin {
  readonly #base: string;

  constructor(options: { readonly host: string; readonly port: number }) {
    this.#base = `http://${options.host}:${String(options.port)}`;
  }

  /** Address of the interface. */
  get url(): string {
    return this.#base;
  }

  /** Whether Envoy says LIVE; false also when nothing answers. */
  async isLive(): Promise<boolean> {
    try {
      return (await this.#get("/ready")).trim() === "LIVE";
    } catch {
      return false;
    }
  }

  /** Hosts of all clusters. */
  async clusters(): Promise<EnvoyClusters> {
    return parseClusters(JSON.parse(await this.#get("/clusters?format=json")) as unknown);
  }

  /** Counters and gauges, those whose name matches `filter` (a regular expression of Envoy's), all without one. */
  async stats(filter?: string): Promise<ReadonlyMap<string, number>> {
    const query = filter === undefined ? "" : `?filter=${encodeURIComponent(filter)}`;
    return parseStats(await this.#get(`/stats${query}`));
  }

  /** Version text, such as `<commit>/1.40.0/Clean/RELEASE/BoringSSL`. */
  async versionText(): Promise<string> {
    const info = JSON.parse(await this.#get("/server_info")) as { readonly version?: unknown };
    return typeof info.version === "string" ? info.version : "";
  }

  /** Stops taking new connections and lets what runs finish. */
  async drain(): Promise<void> {
    await this.#call("POST", "/drain_listeners?graceful&skip_exit");
  }

  async #get(path: string): Promise<string> {
    return this.#call("GET", path);
  }

  async #call(method: "GET" | "POST", path: string): Promise<string> {
    try {
      const { statusCode, body } = await request(`${this.#base}${path}`, {
        method,
        headersTimeout: answerMsMax,
        bodyTimeout: answerMsMax,
        signal: AbortSignal.timeout(answerMsMax),
      });
      const text = await body.text();
      // /ready answers 503 with the state as text.
      if (statusCode !== 200 && path !== "/ready")
        throw new Error(`HTTP ${String(statusCode)}: ${text}`);
      return text;
    } catch (error) {
      throw new MeshError(
        "worker_lost",
        `Envoy admin ${this.#base}${path}: ${(error as Error).message}`,
        {
          cause: error,
        },
      );
    }
  }
}
