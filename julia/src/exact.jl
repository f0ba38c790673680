# The exact evaluation: one sample, unit by unit, Float64 in the log domain. Queries about samples that underflow in the tiles go
# by it, and it is the reference that tests and benchmarks hold the tiles to.

"log value of every unit for sample `n` of `X`, in nats (without a soft evidence's offset)."
function log_values(c::Circuit, X::Data, n::Integer)
    out = Vector{Float64}(undef, num_units(c))
    for u in 1:num_units(c)
        out[u] = if isinput(c.kind[u])
            log_input(c, u, X, n)
        elseif c.kind[u] == PRODUCT
            sum(out[v] for v in children(c, u))
        else
            top = maximum(out[v] for v in children(c, u))
            isfinite(top) ? top + log(sum(c.weight[e] * exp(out[child(c, u, e)] - top) for e in edges(c, u))) : -Inf
        end
    end
    return out
end

log_input(c, u, X::Masked, n) = X.mask[c.variable[u], n] ? 0.0 : log_input(c, u, X.values, n)

log_input(c, u, X::AbstractMatrix, n) = log_probability(c, u, X[c.variable[u], n])

log_input(c, u, X::SoftEvidence, n) = log(soft_input(c, u, X, n))

"The value of input `u` given soft evidence: of numbers whose products may be smaller than any Float32."
soft_input(c, u, X::SoftEvidence, n) =
    sum(probability(c, u, k) * X.likelihood[k + 1, c.variable[u], n] for k in 0:c.categories[u] - 1)
