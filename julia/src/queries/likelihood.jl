# Likelihoods of whole data sets.

"""
    log_likelihood(circuit, X; heads = 1:num_heads) -> Matrix{Float64}

log p(x | head) in nats, `(heads, samples)`. `X`: integers `(variables, samples)`, [`Masked`](@ref) or [`SoftEvidence`](@ref). An
[`Engine`](@ref) or a [`Plan`](@ref) in place of the circuit saves the planning from call to call.
"""
function log_likelihood(e::Engine, X::Data; heads=1:num_heads(circuit(e)))
    out = Matrix{Float64}(undef, length(heads), num_samples(X))
    return certain_log_likelihood!(out, e, X, heads)
end

log_likelihood(plan::Plan, X::Data; kwargs...) = log_likelihood(CPUEngine(plan), X; kwargs...)

log_likelihood(c::Circuit, X::Data; kwargs...) = log_likelihood(engine(c; soft=X isa SoftEvidence), X; kwargs...)

"[`log_likelihood!`](@ref) of checked data, with the samples that it leaves uncertain evaluated again, each unit with a scale of its own."
function certain_log_likelihood!(out::AbstractMatrix{<:AbstractFloat}, e::Engine, X::Data, heads)
    check_data(X, schedule(e).limits)
    redo!(out, schedule(e), X, heads, log_likelihood!(out, e, X, heads))
    return out
end

"[`head_values!`](@ref), with the samples that it leaves uncertain evaluated exactly; of an impossible sample all values are 0."
function certain_head_values!(values::Matrix{Float32}, scale::Vector{Float64}, e::Engine, X::Data)
    check_data(X, schedule(e).limits)
    uncertain = head_values!(values, scale, e, X)
    isempty(uncertain) && return
    exact = Matrix{Float64}(undef, size(values, 1), num_samples(X))
    redo!(exact, schedule(e), X, axes(values, 1), uncertain)
    for n in uncertain
        top = maximum(view(exact, :, n))
        scale[n] = top > -Inf ? top : 0.0
        for head in axes(values, 1)
            values[head, n] = exp(exact[head, n] - scale[n])
        end
    end
end
