import type { AnswerForm } from "../decisions/decision.ts";

/** How a request asks for its answer; empty when its body was not read that far. */
export function answerFormOf(request: {
  readonly kind: string;
  readonly stream?: boolean | undefined;
}): AnswerForm {
  if (request.stream === undefined) return "";
  return request.stream ? "stream" : "whole";
}
