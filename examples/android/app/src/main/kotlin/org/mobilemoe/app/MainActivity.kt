package org.mobilemoe.app

import android.app.Activity
import android.os.Bundle
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.Spinner
import android.widget.TextView
import java.io.File
import java.util.concurrent.Executors
import org.mobilemoe.EngineException
import org.mobilemoe.TextModel

/** Picks a model from the app's own storage and shows its text as it is written. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor() // an engine is for one thread
    private var model: TextModel? = null // touched by the worker only
    private var opened: File? = null
    @Volatile private var stopped = false
    private lateinit var models: Spinner
    private lateinit var prompt: EditText
    private lateinit var button: Button
    private lateinit var output: TextView

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        val storage = File(getExternalFilesDir(null), "models").apply { mkdirs() }
        val folders = storage.listFiles { file -> File(file, "config.json").exists() }.orEmpty().sorted()
        models = Spinner(this)
        models.adapter = ArrayAdapter(this, android.R.layout.simple_spinner_dropdown_item, folders.map { it.name })
        prompt = EditText(this).apply { hint = "Write something" }
        button = Button(this).apply { text = "Answer" }
        output = TextView(this).apply { textSize = 16f }
        if (folders.isEmpty()) output.text = "No model yet: see the README, which copies one to $storage."
        button.isEnabled = folders.isNotEmpty()
        button.setOnClickListener { answer(folders[models.selectedItemPosition], prompt.text.toString()) }
        setContentView(
            LinearLayout(this).apply {
                orientation = LinearLayout.VERTICAL
                fitsSystemWindows = true
                addView(models)
                addView(prompt)
                addView(button)
                addView(ScrollView(context).apply { addView(output) })
            },
        )
    }

    override fun onStop() {
        stopped = true // the text ends with the next token
        super.onStop()
    }

    override fun onDestroy() {
        worker.execute { model?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun answer(folder: File, text: String) {
        button.isEnabled = false
        output.text = ""
        stopped = false
        worker.execute {
            try {
                val ready = open(folder)
                ready.write(ready.question(text), MOST_TOKENS, TEMPERATURE, System.nanoTime()) { piece ->
                    runOnUiThread { output.append(piece) }
                    !stopped
                }
            } catch (error: EngineException) {
                show(error)
            } catch (error: java.io.IOException) {
                show(error)
            }
            runOnUiThread { button.isEnabled = true }
        }
    }

    private fun open(folder: File): TextModel {
        val current = model
        if (current != null && opened == folder) return current
        current?.close()
        model = null
        return TextModel(folder, 0).also {
            model = it
            opened = folder
        }
    }

    private fun show(error: Exception) {
        runOnUiThread { output.text = error.message }
    }

    private companion object {
        const val MOST_TOKENS = 512
        const val TEMPERATURE = 0.7
    }
}
