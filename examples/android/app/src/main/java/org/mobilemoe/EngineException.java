package org.mobilemoe;

/** What the engine refused, in its own sentence. */
public final class EngineException extends RuntimeException {
    public EngineException(String sentence) {
        super(sentence);
    }
}
