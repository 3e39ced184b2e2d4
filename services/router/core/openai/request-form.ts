import { kindOf } from "./openai-request.ts";

/** Why a request cannot be read, whatever its body says. */
export interface WrongForm {
  readonly status: 405 | 415;
  readonly message: string;
  /** Methods that the path has, as the `allow` header lists them; with 405. */
  readonly allow?: string;
}

const modelsPath = /\/v1\/models(?:\/(.+?))?\/?$/;

function routeOf(path: string): string {
  return path.split("?", 1)[0] ?? "";
}

/**
 * What a path of the models API asks for: all models, or the one whose name it ends with. `undefined` for other paths.
 * A name that is wrongly encoded stands as it is, and no model has it.
 */
export function modelsQuestion(path: string): { readonly id: string | undefined } | undefined {
  const match = modelsPath.exec(routeOf(path));
  if (match === null) return undefined;
  const [, id] = match;
  if (id === undefined) return { id };
  try {
    return { id: decodeURIComponent(id) };
  } catch {
    return { id };
  }
}

function methodsOf(path: string): readonly string[] | undefined {
  if (kindOf(path) !== "other") return ["POST"];
  return modelsQuestion(path) === undefined ? undefined : ["GET", "HEAD"];
}

/** Whether the body is read as JSON; of other paths that may also be something else, such as an upload. */
function isRead(path: string, contentType: string | undefined): boolean {
  return kindOf(path) !== "other" || contentType === undefined || /\bjson\b/iu.test(contentType);
}

/** Judges method and encoding of a request; `undefined` when nothing is wrong. Methods of unknown paths are the engine's. */
export function findWrongForm(request: {
  readonly method: string;
  readonly path: string;
  readonly contentType: string | undefined;
  readonly contentEncoding: string | undefined;
}): WrongForm | undefined {
  const { method, path, contentType, contentEncoding } = request;
  const methods = methodsOf(path);
  if (methods !== undefined && !methods.includes(method)) {
    const allow = methods.join(", ");
    return { status: 405, allow, message: `${method} has no meaning at this path; use ${allow}` };
  }
  const encoding = contentEncoding?.trim().toLowerCase() ?? "";
  if (encoding === "" || encoding === "identity" || !isRead(path, contentType)) return undefined;
  return {
    status: 415,
    message: `content-encoding ${JSON.stringify(encoding.slice(0, 64))} is not supported; send the body as it is`,
  };
}
