import { readFileSync } from "node:fs";
import { isMap, isNode, isScalar, LineCounter, parseDocument, type Document } from "yaml";

/** Says where in kvmesh.yaml a setting stands. */
export class SettingsLines {
  readonly #file: string | undefined;
  readonly #document: Document | undefined;
  readonly #lines = new LineCounter();

  /** `file` undefined or unreadable: every setting comes from elsewhere. */
  constructor(file: string | undefined) {
    this.#file = file;
    const text = file === undefined ? undefined : readText(file);
    this.#document =
      text === undefined ? undefined : parseDocument(text, { lineCounter: this.#lines });
  }

  /** Whether the file has this very path. */
  has(path: readonly (string | number)[]): boolean {
    return this.#document?.hasIn(path) === true;
  }

  /** `file:line` of the path or of the nearest map above it that the file has; "settings" when it has neither. */
  where(path: readonly (string | number)[]): string {
    for (let depth = path.length; depth > 0; depth--) {
      const line = this.#lineOf(path.slice(0, depth));
      if (line !== undefined) return `${this.#file ?? ""}:${String(line)}`;
    }
    return "settings";
  }

  #lineOf(path: readonly (string | number)[]): number | undefined {
    const document = this.#document;
    if (document?.hasIn(path) !== true) return undefined;
    const above = path.length === 1 ? document.contents : document.getIn(path.slice(0, -1), true);
    const key = isMap(above)
      ? above.items.find((pair) => isScalar(pair.key) && pair.key.value === path.at(-1))?.key
      : document.getIn(path, true);
    if (!isNode(key) || key.range == null) return undefined;
    return this.#lines.linePos(key.range[0]).line;
  }
}

function readText(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    // Who reads the settings says so.
    return undefined;
  }
}
